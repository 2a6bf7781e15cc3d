//! Sizes as people write them: 512, 4k, 64K, 1M, 2G.

/// Bytes; the letters are powers of 1024.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1u64 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(format!("unknown unit '{unit}'; use k, m, g or t")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a size; write 512, 4k or 1M".to_string())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "too large".to_string())
}

/// As `bytes`, for sizes of requests.
pub(super) fn bytes_u32(text: &str) -> Result<u32, String> {
    u32::try_from(bytes(text)?).map_err(|_| "too large; use less than 4G".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("4k"), Ok(4096));
        assert_eq!(bytes("1M"), Ok(1 << 20));
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        for bad in ["", "k", "-1", "1x", "99999999999T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
