//! Which machine may go on with a disk that came from another host: its rings begin where the disk's
//! state says that they stopped.

use std::sync::PoisonError;

use super::device::Blk;

/// Where the rings of the machine begin that is to go on with the disk.
pub(super) struct ExpectedBases {
    pub bases: Vec<u16>,
    /// Nobody drove the device any more when it was given up: the machine that did last may go on,
    /// or another may boot.
    pub or_boots: bool,
}

impl ExpectedBases {
    fn fits(&self, at: usize, base: u16) -> bool {
        let expected = self.bases.get(at);
        // Where the last machine stopped is 0 as well where nobody knows it any more.
        let loose = |expected| self.or_boots && (base == 0 || expected == 0);
        expected.is_none_or(|&expected| base == expected || loose(expected))
    }
}

impl Blk {
    pub(super) fn is_expected(&self, at: usize, base: u16) -> bool {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        expected.as_ref().is_none_or(|it| it.fits(at, base))
    }

    pub(super) fn expect(&self, expected: Option<ExpectedBases>) {
        *self.expected.lock().unwrap_or_else(PoisonError::into_inner) = expected;
    }
}
