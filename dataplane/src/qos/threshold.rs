//! The threshold of a datastore that nobody has set: the latency at which it gives nine tenths of the most
//! that it can give. Beyond that, a longer queue buys latency and hardly any throughput.
//!
//! Found while the datastore is idle, with random reads at one depth after another. What is read here are
//! the results; the reading itself is the caller's.

/// What was measured at one depth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Reads under way at a time.
    pub depth: u32,
    /// Reads a second.
    pub iops: f64,
    /// How long one took, on average, in nanoseconds.
    pub latency_ns: f64,
}

/// The part of the peak throughput that is enough.
const ENOUGH: f64 = 0.9;

/// A doubled depth that brings less than this is past the peak.
const GAIN: f64 = 1.05;

/// Doublings in a row that must bring less: one may be bad luck.
const FLAT: usize = 2;

/// The depth to measure next, or `None` when the peak is passed or `depth_max` is reached.
pub fn next_depth(samples: &[Sample], depth_max: u32) -> Option<u32> {
    let samples = usable(samples);
    let Some(last) = samples.last() else {
        return (depth_max > 0).then_some(1);
    };
    let mut best = samples.iter().map(|it| it.iops);
    let first = best.next().unwrap_or(0.0);
    let mut flat = 0;
    best.fold(first, |best, iops| {
        flat = if iops < best * GAIN { flat + 1 } else { 0 };
        best.max(iops)
    });
    let next = last.depth.checked_mul(2).filter(|&it| it <= depth_max);
    next.filter(|_| flat < FLAT)
}

/// The threshold in nanoseconds. `None` if nothing was measured.
pub fn threshold_ns(samples: &[Sample]) -> Option<u64> {
    let samples = usable(samples);
    let peak = samples.iter().map(|it| it.iops).fold(0.0, f64::max);
    let enough = peak * ENOUGH;
    let above = samples.iter().position(|it| it.iops >= enough)?;
    let at = samples[above];
    let latency_ns = match above.checked_sub(1).map(|below| samples[below]) {
        None => at.latency_ns,
        Some(below) => {
            let part = (enough - below.iops) / (at.iops - below.iops);
            below.latency_ns + part.clamp(0.0, 1.0) * (at.latency_ns - below.latency_ns)
        }
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
    Some((latency_ns as u64).max(1))
}

/// Those that are measurements, by depth.
fn usable(samples: &[Sample]) -> Vec<Sample> {
    let real = |it: f64| it > 0.0 && it.is_finite();
    let fine = |it: &&Sample| it.depth > 0 && real(it.iops) && real(it.latency_ns);
    let mut samples: Vec<Sample> = samples.iter().filter(fine).copied().collect();
    samples.sort_by_key(|it| it.depth);
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An array with so many disks behind it, each of 5 ms.
    fn measure(disks: f64, depth: u32) -> Sample {
        let depth_f = f64::from(depth);
        let busy = disks * (1.0 - (1.0 - 1.0 / disks).powf(depth_f));
        let iops = busy / 0.005;
        Sample {
            depth,
            iops,
            latency_ns: depth_f / iops * 1e9,
        }
    }

    fn all(disks: f64, depth_max: u32) -> Vec<Sample> {
        let mut samples = Vec::new();
        while let Some(depth) = next_depth(&samples, depth_max) {
            samples.push(measure(disks, depth));
        }
        samples
    }

    #[test]
    fn depth_doubles_until_nothing_is_gained() {
        let samples = all(8.0, 256);
        let depths: Vec<u32> = samples.iter().map(|it| it.depth).collect();
        assert_eq!(depths, [1, 2, 4, 8, 16, 32, 64, 128]);
        let short: Vec<u32> = all(8.0, 10).iter().map(|it| it.depth).collect();
        assert_eq!(short, [1, 2, 4, 8]);
        assert!(next_depth(&[], 0).is_none());
    }

    #[test]
    fn the_threshold_gives_nine_tenths_of_the_peak() {
        for disks in [1.0, 4.0, 8.0, 24.0] {
            let samples = all(disks, 1024);
            let threshold = threshold_ns(&samples).unwrap() as f64;
            let peak = disks / 0.005;
            // The depth that has this latency, and what it gives.
            let depth = (1..2048).find(|&it| measure(disks, it).latency_ns >= threshold);
            let given = measure(disks, depth.unwrap()).iops / peak;
            assert!((0.85..=1.0).contains(&given), "{disks} disks: {given}");
        }
    }

    #[test]
    fn it_lies_between_the_depths_around_it() {
        let at = |depth, iops, latency_ns| Sample {
            depth,
            iops,
            latency_ns,
        };
        let samples = [at(4, 1000.0, 8e6), at(1, 400.0, 2e6), at(2, 800.0, 4e6)];
        assert_eq!(threshold_ns(&samples), Some(6_000_000));
        assert_eq!(threshold_ns(&samples[..1]), Some(8_000_000));
        assert_eq!(threshold_ns(&[at(1, f64::NAN, 1.0)]), None);
        assert_eq!(threshold_ns(&[]), None);
    }
}
