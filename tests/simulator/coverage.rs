//! What happened, counted: a simulation in which nothing happens shows nothing.

macro_rules! happenings {
    ($($name:ident: $text:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Happened {
            $($name,)*
        }

        const TEXTS: &[&str] = &[$($text,)*];
    };
}

happenings! {
    InSync: "copies in sync",
    ReleasedByPerson: "released by a person",
    ReleasedByPull: "released to a pull",
    Granted: "granted",
    Activated: "served at the destination",
    MovedByPull: "a pulled disk is served",
    Moved: "moves completed",
    HandedBack: "handed back",
    AskedBack: "asked back by rings",
    Asked: "asked in doubt",
    DoubtResolvedAsMoved: "doubt resolved: served there",
    DoubtResolvedAsGranted: "doubt resolved: granted there",
    Tombstone: "an attempt refused for ever",
    Cancelled: "cancelled",
    MoveFailed: "moves given up",
    CopyDiscarded: "copies discarded",
    ReleaseRefused: "releases refused",
    ReleaseNotRecorded: "releases not recorded",
    Pulled: "rings ask for their disk",
    PullRefused: "pulls without proof",
    StrangerHeld: "another machine's rings held",
    MirrorGivenUp: "mirrors given up",
    WriteWaitsForCopier: "writes that wait for the copier",
    WriteFailed: "writes that fail",
    Dirty: "extents marked dirty",
    CopiedAgain: "extents copied again",
    HoleCopied: "holes copied",
    HoleFilled: "holes filled before they were copied",
    ReadChecked: "reads checked",
    Kill: "daemons killed",
    DiedBetweenSteps: "crashes between two steps",
    PowerCut: "power cuts",
    PowerCutDuringCopy: "power cuts during a copy",
    UnflushedLost: "power cuts that lose writes",
    RestartedWhileGranted: "restarts of a granted destination",
    Suspended: "daemons suspended",
    Silence: "links lost by silence",
    LinkCut: "links cut",
    LinkStalls: "links stalled",
    Damage: "frames damaged",
    DamageFound: "data found damaged",
    StoreFails: "records that cannot be written",
    ServedAfterHealing: "guests served after healing",
}

const COUNT: usize = TEXTS.len();

#[derive(Debug, Clone)]
pub struct Seen([u64; COUNT]);

impl Default for Seen {
    fn default() -> Seen {
        Seen([0; COUNT])
    }
}

impl Seen {
    pub fn count(&mut self, what: Happened) {
        self.0[what as usize] += 1;
    }

    pub fn of(&self, what: Happened) -> u64 {
        self.0[what as usize]
    }

    pub fn add(&mut self, other: &Seen) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    pub fn table(&self) -> String {
        let line = |(text, count): (&&str, &u64)| format!("  {count:>12} {text}\n");
        TEXTS.iter().zip(&self.0).map(line).collect()
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        let texts = TEXTS.iter().zip(self.0);
        texts
            .filter(|(_, count)| *count == 0)
            .map(|(text, _)| *text)
            .collect()
    }
}
