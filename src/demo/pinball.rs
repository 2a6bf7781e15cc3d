//! `ferry demo --pinball`: a game that is played on while its machine changes hosts.
//!
//! ```text
//!   host A: a daemon              host B: a daemon
//!   ┌─────────────────────┐       ┌─────────────────────┐
//!   │ disk   NIC ── switch│       │switch ── NIC   disk │
//!   └──┬──────┬───────┬───┘       └──┬────────┬─────┬───┘
//!      │      │       └───── hub ────┘        ·     ·
//!    ┌─┴──────┴─┐             │               ·     ·
//!    │  guest   │          screen          (after the move)
//!    └──────────┘
//! ```
//!
//! The guest ([`guest`]) computes the game ([`table`]), and sends every frame to the screen ([`player`])
//! on one TCP stream, and to its disk; keys go the other way. Disk and NIC move from A to B and back
//! ([`moves`]). The two hosts are joined by what stands in for their network ([`cable`]).

mod cable;
mod guest;
mod moves;
mod player;
mod record;
mod report;
mod screen;
mod stack;
mod table;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ferry_bench::blk::run_id;
use ferry_bench::frontend::{GuestMemory, Vmm, VmmOptions};
use ferry_migration::ids::DiskId;

use super::host::Host;
use super::{DISK, DemoArguments, hosts_logs, make_image};
use crate::error::{Done, Failure};
use crate::output;
use cable::{Card, Hub};
use guest::{Account, Disk, Guest};
use moves::{Machine, Move, Plug, move_all};
use player::{Player, Seen};
use record::Record;
use report::Report;
use screen::Screen;
use stack::End;

/// The guest's NIC on both hosts, the switch, and the card in it that leads to the other host.
const NIC: &str = "game";
const SWITCH: &str = "lan";
const UPLINK: &str = "up";
const UPLINK_MACS: [&str; 2] = ["52:54:00:00:01:0a", "52:54:00:00:01:0b"];
/// Of the guest's disk.
const DISK_BYTES: u64 = 64 << 20;
/// Frames that the disk holds; then the first are written over.
const SECTORS: u64 = DISK_BYTES / 512;
/// How long the game goes on unless told.
const SECONDS: u64 = 15;
const SECONDS_WATCHED: u64 = 30;
/// The first frame comes within this.
const START: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// Lines of the story that are kept for the screen.
const STORY: usize = 6;

/// What the screen shows.
#[derive(Default)]
struct Scene {
    latest: Option<Record>,
    frames: u64,
    longest_gap: Duration,
    /// The longest since it was taken last.
    gap: Duration,
    /// Where the guest is.
    host: usize,
    moves: usize,
    note: String,
    story: VecDeque<String>,
}

impl Scene {
    fn frame(&mut self, record: Record, gap: Duration) {
        self.latest = Some(record);
        self.frames += 1;
        self.longest_gap = self.longest_gap.max(gap);
        self.gap = self.gap.max(gap);
    }

    fn take_gap(&mut self) -> Duration {
        std::mem::take(&mut self.gap)
    }
}

/// What the threads of the game have in common.
#[derive(Default)]
struct Shared {
    scene: Mutex<Scene>,
    /// Keys that were pressed and are not sent yet.
    keys: AtomicU8,
    /// Somebody plays: the autopilot does not.
    keyed: AtomicBool,
    /// The guest is to end the stream.
    ending: AtomicBool,
    /// The stream has ended, or the game has failed.
    over: AtomicBool,
    /// The story is drawn, and not printed.
    drawn: AtomicBool,
    /// The first; what fails after it does so in consequence.
    failure: Mutex<Option<Failure>>,
}

impl Shared {
    fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what happens now, for a moment.
    fn show(&self, line: &str) {
        line.clone_into(&mut self.scene().note);
    }

    /// Tells a line of the story.
    fn tell(&self, line: &str) {
        self.show(line);
        if !self.drawn.load(Ordering::Relaxed) {
            super::say(line);
        }
        let mut scene = self.scene();
        if scene.story.len() == STORY {
            scene.story.pop_front();
        }
        scene.story.push_back(line.to_owned());
    }

    /// Ends the game at once.
    fn fail(&self, why: Failure) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(why);
        self.over.store(true, Ordering::Release);
    }

    fn failed(&self) -> Option<Failure> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take()
    }

    /// Fails once the game is over.
    fn check(&self) -> Done {
        if self.over.load(Ordering::Acquire) {
            return Err(Failure::Failed("the game broke off".into()));
        }
        Ok(())
    }
}

/// Ends the game when a thread of it fails.
fn spawn<T: Send + 'static>(
    name: &str,
    shared: &Arc<Shared>,
    task: impl FnOnce() -> Done<T> + Send + 'static,
) -> Done<JoinHandle<Option<T>>> {
    let ours = shared.clone();
    let noting = move || task().map_err(|why| ours.fail(why)).ok();
    Ok(thread::Builder::new().name(name.into()).spawn(noting)?)
}

/// The game, ready to be played.
struct Game {
    hosts: [Host; 2],
    machine: Machine,
    guest: JoinHandle<Option<Account>>,
    player: JoinHandle<Option<Seen>>,
    shared: Arc<Shared>,
}

/// Plays it.
pub fn run(arguments: &DemoArguments, dir: &Path, hosts: [Host; 2]) -> Done {
    let watched =
        !output::json_mode() && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let game = Game::start(arguments.seed, hosts)?;
    let seconds = arguments
        .seconds
        .unwrap_or(if watched { SECONDS_WATCHED } else { SECONDS });
    let quit = Arc::new(AtomicBool::new(false));
    let report = if watched {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            signal_hook::flag::register(signal, quit.clone())?;
        }
        game.shared.drawn.store(true, Ordering::Relaxed);
        let shared = game.shared.clone();
        let rounds = arguments.rounds;
        let stop = quit.clone();
        let mut screen = Screen::open()?;
        let playing = move || game.play(seconds, rounds, &stop);
        let director = thread::Builder::new()
            .name("director".into())
            .spawn(playing)?;
        let drawn = screen.run(&shared, &quit);
        quit.store(true, Ordering::Relaxed);
        drop(screen);
        let report = director.join();
        drawn?;
        report.unwrap_or_else(|_| Err(Failure::Failed("the game broke off".into())))
    } else {
        game.play(seconds, arguments.rounds, &quit)
    };
    report
        .and_then(|report| report.show())
        .inspect_err(|_| hosts_logs(dir))
}

impl Game {
    /// Two hosts with a switch each and what joins them; the machine at the first.
    fn start(seed: u64, mut hosts: [Host; 2]) -> Done<Game> {
        let id: DiskId = DISK.parse()?;
        for (host, uplink) in hosts.iter_mut().zip(UPLINK_MACS) {
            host.add_switch(SWITCH)?;
            host.add_nic(UPLINK, SWITCH, uplink, true)?;
            host.add_nic(NIC, SWITCH, &mac_text(End::Guest), false)?;
        }
        make_image(&hosts[0].image(), DISK_BYTES)?;
        hosts[0].add_disk(&id, 1, None)?;
        let disk_vmm = Vmm::connect(&hosts[0].socket(), VmmOptions::default())?;
        let nic_vmm = Vmm::connect(&hosts[0].nic_socket(NIC), VmmOptions::net())?;
        let memory = GuestMemory::new(Card::memory_bytes() + Disk::memory_bytes())?;
        let (nic, card) = Card::new(&memory, nic_vmm.features())?;
        let (device, disk) = Disk::new(&memory, disk_vmm.features())?;
        let machine = Machine {
            disk: Plug::start(device, disk_vmm)?,
            nic: Plug::start(nic, nic_vmm)?,
        };
        let hub = Hub::join(&hosts[0].nic_socket(UPLINK), &hosts[1].nic_socket(UPLINK))?;
        let shared = Arc::new(Shared::default());
        let [a, b, c, d, ..] = run_id(seed).to_le_bytes();
        let run = u32::from_le_bytes([a, b, c, d]);
        let guest = Guest::new(seed, run, card, disk, shared.clone())?;
        let player = Player::new(seed, run, hub, shared.clone())?;
        Ok(Game {
            guest: spawn("guest", &shared, || guest.play())?,
            player: spawn("player", &shared, || player.watch())?,
            hosts,
            machine,
            shared,
        })
    }

    /// To its end, with moves there and back in the middle.
    fn play(mut self, seconds: u64, rounds: u16, quit: &AtomicBool) -> Done<Report> {
        let directed = self.direct(seconds, rounds, quit);
        let directed = directed.map_err(|why| self.shared.fail(why)).ok();
        self.shared.ending.store(true, Ordering::Release);
        // A thread that panics ends the process.
        let seen = self.player.join().ok().flatten();
        let account = self.guest.join().ok().flatten();
        if let Some(why) = self.shared.failed() {
            return Err(why);
        }
        let (Some(seen), Some(account), Some((moves, took))) = (seen, account, directed) else {
            return Err(Failure::Failed("the game broke off".into()));
        };
        Ok(Report::new(seen, account, moves, took.as_secs_f64()))
    }

    fn direct(
        &mut self,
        seconds: u64,
        rounds: u16,
        quit: &AtomicBool,
    ) -> Done<(Vec<Move>, Duration)> {
        let id: DiskId = DISK.parse()?;
        let began = Instant::now();
        while self.shared.scene().frames == 0 {
            self.shared.check()?;
            if began.elapsed() > START {
                return Err(Failure::Failed("the game does not begin".into()));
            }
            thread::sleep(POLL);
        }
        self.shared
            .tell("playing at host A: each frame goes over TCP to the screen, and to the disk");
        let count = 2 * u32::from(rounds);
        let step = Duration::from_secs(seconds) / (count + 1);
        let mut moves: Vec<Move> = Vec::new();
        for at in 0..count {
            if !self.wait(began + step * (at + 1), quit)? {
                break;
            }
            if let Some(last) = moves.last_mut() {
                last.settle(&mut self.hosts)?;
            }
            let route = if at % 2 == 0 { (0, 1) } else { (1, 0) };
            let (hosts, machine) = (&mut self.hosts, &mut self.machine);
            moves.push(move_all(&id, hosts, route, machine, &self.shared)?);
            self.shared.scene().moves += 1;
        }
        self.wait(began + Duration::from_secs(seconds), quit)?;
        if let Some(last) = moves.last_mut() {
            last.settle(&mut self.hosts)?;
        }
        Ok((moves, began.elapsed()))
    }

    /// Lets the game go on until then; false if it is to end.
    fn wait(&self, until: Instant, quit: &AtomicBool) -> Done<bool> {
        while Instant::now() < until {
            self.shared.check()?;
            if quit.load(Ordering::Relaxed) {
                return Ok(false);
            }
            thread::sleep(POLL);
        }
        Ok(!quit.load(Ordering::Relaxed))
    }
}

fn mac_text(end: End) -> String {
    let bytes = end.mac().map(|byte| format!("{byte:02x}"));
    bytes.join(":")
}
