//! The system calls that the standard library has no safe form for. Each takes a live descriptor
//! and memory of this stack frame, so each is safe to call; the one that does not says so.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `fallocate` mode: deallocate, read as zeroes, keep the size.
pub const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// `fallocate` mode: keep the space, read as zeroes, keep the size.
pub const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// `fallocate` mode: take the space, keep the size.
pub const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;

/// What direct I/O asks of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectIoAlign {
    /// Of memory addresses, in bytes.
    pub memory_bytes: u32,
    /// Of offsets and lengths, in bytes.
    pub offset_bytes: u32,
}

impl DirectIoAlign {
    /// Of I/O that asks for nothing: sectors alone are whole.
    pub const fn none() -> DirectIoAlign {
        DirectIoAlign {
            memory_bytes: 1,
            offset_bytes: 512,
        }
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Raises this process's limit of open files as far as it may go; returns that.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one `rlimit`, which lives through it.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the call reads one `rlimit`, which lives through it.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_max)
}

/// Has the calling thread's timers go off when they are due: by itself the kernel lets them be 50 us
/// late, to gather them.
pub fn set_exact_timers() {
    // SAFETY: no memory; it changes a number of this thread's.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

/// Nanoseconds on the clock that all processes of this host share, since it started.
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one `timespec`, which lives through it. It cannot fail: Linux has the
    // clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// Deallocates or zeroes a range of a file or block device.
pub fn fallocate(file: &File, mode: i32, range: Range<u64>) -> io::Result<()> {
    let (Ok(start), Ok(len)) = (
        i64::try_from(range.start),
        i64::try_from(range.end.saturating_sub(range.start)),
    ) else {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    };
    loop {
        // SAFETY: plain integers and a descriptor that `file` keeps open.
        let done = check(unsafe { libc::fallocate(file.as_raw_fd(), mode, start, len) });
        match done {
            // The kernel's own work for an io_uring may interrupt it.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// The first run of data of a file of `end` bytes at or after `offset_bytes`; `None` when only a
/// hole follows. A file system that cannot tell answers all that is left.
pub fn next_data(file: &File, offset_bytes: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    let start = match seek(file, offset_bytes, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => offset_bytes,
        Err(error) => return Err(error),
    };
    let stop = seek(file, start, libc::SEEK_HOLE).unwrap_or(end);
    Ok((start < end).then(|| start..stop.min(end)))
}

/// Whether the file's bytes are memory of the kernel's: on tmpfs, or a memfd.
pub fn is_tmpfs(file: &File) -> io::Result<bool> {
    let mut about = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the call fills `about`, which is plain data and valid as zeroes besides.
    let about = unsafe {
        check(libc::fstatfs(file.as_raw_fd(), about.as_mut_ptr()))?;
        about.assume_init()
    };
    Ok(about.f_type == libc::TMPFS_MAGIC)
}

/// Reads exactly `len` bytes at `offset_bytes` into memory that is not this process's alone.
///
/// # Safety
///
/// `to` must be mapped and writable for `len` bytes.
pub(crate) unsafe fn read_raw_at(
    file: &File,
    offset_bytes: u64,
    to: *mut u8,
    len: usize,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let offset = i64::try_from(offset_bytes + done as u64)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: `done` is below `len`, and the rest is the caller's promise.
        let got = unsafe { libc::pread(file.as_raw_fd(), to.add(done).cast(), len - done, offset) };
        match usize::try_from(got) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => done += bytes,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// `lseek` with `whence`; the description's offset means nothing here, all I/O is positional.
fn seek(file: &File, offset_bytes: u64, whence: i32) -> io::Result<u64> {
    let offset =
        i64::try_from(offset_bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: plain integers and a descriptor that `file` keeps open.
    let at = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(at).map_err(|_| io::Error::last_os_error())
}

/// Takes an open-file-description lock on the whole file; `false` when another holds it.
pub fn lock_description(file: &File, shared: bool) -> io::Result<bool> {
    // SAFETY: `flock` is plain data for which zeroes are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    lock.l_type = libc::c_short::try_from(kind).expect("lock kinds are small");
    lock.l_whence = 0; // SEEK_SET; a length of 0 reaches to the end, however far it grows
    // SAFETY: `lock` lives through the call, which only reads it.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Size of a block device in bytes.
pub fn block_device_bytes(file: &File) -> io::Result<u64> {
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut bytes = 0u64;
    // SAFETY: the ioctl writes one u64, which `bytes` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut bytes) })?;
    Ok(bytes)
}

/// What direct I/O on this file asks for; a page where the kernel cannot say.
pub fn direct_io_align(file: &File) -> io::Result<DirectIoAlign> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; the call fills `stat`, which
    // is plain data and valid as zeroes besides.
    let stat = unsafe {
        check(libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            stat.as_mut_ptr(),
        ))?;
        stat.assume_init()
    };
    if stat.stx_mask & libc::STATX_DIOALIGN == 0 || stat.stx_dio_offset_align == 0 {
        return Ok(DirectIoAlign {
            memory_bytes: 4096,
            offset_bytes: 4096,
        });
    }
    Ok(DirectIoAlign {
        memory_bytes: stat.stx_dio_mem_align,
        offset_bytes: stat.stx_dio_offset_align,
    })
}

/// `TUNSETOFFLOAD`: checksums may be left to the receiver.
pub const TUN_F_CSUM: u32 = 0x01;
/// TCP over IPv4 may come unsegmented.
pub const TUN_F_TSO4: u32 = 0x02;
/// TCP over IPv6 may.
pub const TUN_F_TSO6: u32 = 0x04;
/// Such frames may have ECN bits.
pub const TUN_F_TSO_ECN: u32 = 0x08;
/// UDP over IPv4 and IPv6 may come unsegmented (Linux 6.2).
pub const TUN_F_USO: u32 = 0x20 | 0x40;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;

fn interface(name: &str, flags: i16) -> libc::ifreq {
    // SAFETY: all zeroes are an `ifreq` without a name.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    let room = request.ifr_name.len() - 1;
    for (to, &from) in request.ifr_name[..room].iter_mut().zip(name.as_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags;
    request
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|&byte| byte.cast_unsigned());
    let name: Vec<u8> = bytes.take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&name).into_owned()
}

/// Makes an open `/dev/net/tun` a queue of the tap interface `name`, with virtio-net headers; returns
/// the name that the kernel gave it.
pub fn tun_set_interface(file: &File, name: &str, multi_queue: bool) -> io::Result<String> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let flags = u16::try_from(flags)
        .expect("flags of 16 bits")
        .cast_signed();
    let mut request = interface(name, flags);
    // SAFETY: the call reads and writes one `ifreq`, which lives through it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(name_of(&request))
}

/// The interface that a tun descriptor is a queue of; an error when it is no tap with headers.
pub fn tun_interface(file: &File) -> io::Result<String> {
    let mut request = interface("", 0);
    // SAFETY: the call writes one `ifreq`, which lives through it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
    // SAFETY: the call has set the flags.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags }.cast_unsigned());
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags & wanted != wanted {
        return Err(io::Error::other(
            "the descriptor is no tap device with IFF_NO_PI and IFF_VNET_HDR",
        ));
    }
    Ok(name_of(&request))
}

/// Sets the bytes of the header before each frame, little-endian.
pub fn tun_set_header_bytes(file: &File, bytes: usize) -> io::Result<()> {
    let (bytes, little) = (libc::c_int::try_from(bytes).unwrap_or(0), 1 as libc::c_int);
    // SAFETY: each call reads one int, which lives through it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) })?;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETLE, &raw const little) })?;
    Ok(())
}

/// Says what the frames read from a tap may leave unfinished.
pub fn tun_set_offloads(fd: std::os::fd::RawFd, flags: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(fd, TUNSETOFFLOAD, libc::c_ulong::from(flags)) })?;
    Ok(())
}

/// What an interface of this process's network says of its speed, in Mbit/s; `None` when it does not know.
pub fn link_speed_mbps(name: &str) -> io::Result<Option<u32>> {
    /// `struct ethtool_cmd`, in words.
    type EthtoolCmd = [u32; 11];
    const ETHTOOL_GSET: u32 = 1;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    // Any socket will do.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut answer: EthtoolCmd = [0; 11];
    answer[0] = ETHTOOL_GSET;
    let mut request = interface(name, 0);
    request.ifr_ifru.ifru_data = (&raw mut answer).cast();
    // SAFETY: the call reads one `ifreq`, and writes the words that it points to; both live through it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    let bytes = |word: usize| answer[word].to_ne_bytes();
    let (low, high) = (bytes(3), bytes(7));
    let speed = u32::from(u16::from_ne_bytes([low[0], low[1]]))
        | u32::from(u16::from_ne_bytes([high[0], high[1]])) << 16;
    let known = speed != 0 && i32::try_from(speed).is_ok() && speed != u32::from(u16::MAX);
    Ok(known.then_some(speed))
}
