//! A tap device: frames to and from the host's network, with the virtio-net header before each.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::features::Offloads;
use super::header::HEADER_BYTES;
use crate::sys;

/// Longest name of an interface.
const NAME_BYTES_MAX: usize = 15;

/// One queue of a tap device.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// The interface.
    name: String,
    /// The kernel takes many datagrams in one (USO), which it does since Linux 6.2.
    uso: bool,
}

impl Tap {
    /// Opens, or makes, the interface `name`: `queues` times, a queue each. Needs CAP_NET_ADMIN, or an
    /// interface that belongs to the user (`ip tuntap add NAME mode tap user USER multi_queue vnet_hdr`).
    pub fn open(name: &str, queues: u16) -> io::Result<Vec<Tap>> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(io::Error::other(format!(
                "{name:?} is no name of an interface: it has 1 to {NAME_BYTES_MAX} bytes"
            )));
        }
        let open = |_| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")?;
            let name = sys::tun_set_interface(&file, name, queues > 1)?;
            Tap::with(file, name)
        };
        (0..queues.max(1)).map(open).collect()
    }

    /// A queue that somebody else opened, of an interface with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Tap> {
        let file = File::from(fd);
        let name = sys::tun_interface(&file)?;
        Tap::with(file, name)
    }

    fn with(file: File, name: String) -> io::Result<Tap> {
        sys::tun_set_header_bytes(&file, HEADER_BYTES)?;
        // What it would give so, it takes so; one that knows neither refuses the flag.
        let uso = sys::tun_set_offloads(file.as_raw_fd(), sys::TUN_F_CSUM | sys::TUN_F_USO).is_ok();
        let tap = Tap {
            fd: file.into(),
            name,
            uso,
        };
        tap.set_offloads(Offloads::NONE)?;
        Ok(tap)
    }

    /// The speed that its interface says to have, in Mbit/s, if it says any.
    pub fn speed_mbps(&self) -> Option<u32> {
        sys::link_speed_mbps(&self.name).ok().flatten()
    }

    /// What it takes unfinished.
    pub fn takes(&self) -> Offloads {
        if self.uso {
            Offloads::ALL
        } else {
            Offloads::ALL.without(Offloads::USO4.with(Offloads::USO6))
        }
    }

    /// Something that is written to as a tap is, of a kernel that may know USO.
    #[cfg(test)]
    pub(crate) fn of(fd: OwnedFd, uso: bool) -> Tap {
        let name = "none".into();
        Tap { fd, name, uso }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel may leave unfinished in the frames it gives: what their receiver takes.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let wanted = [
            (Offloads::CSUM, sys::TUN_F_CSUM),
            (Offloads::TSO4, sys::TUN_F_TSO4),
            (Offloads::TSO6, sys::TUN_F_TSO6),
        ];
        let csum = offloads.has(Offloads::CSUM);
        let on = wanted
            .iter()
            .filter(|(offload, _)| csum && offloads.has(*offload));
        let mut flags = on.fold(0, |flags, (_, flag)| flags | flag);
        if flags & (sys::TUN_F_TSO4 | sys::TUN_F_TSO6) != 0 && offloads.has(Offloads::ECN) {
            flags |= sys::TUN_F_TSO_ECN;
        }
        if self.uso && csum && offloads.has(Offloads::USO4.with(Offloads::USO6)) {
            flags |= sys::TUN_F_USO;
        }
        sys::tun_set_offloads(self.as_raw_fd(), flags)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
