//! `ferry demo --pinball`: without a terminal, and in one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

/// How long anything may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(60);
const FERRY: &str = env!("CARGO_BIN_EXE_ferry");

#[test]
fn the_game_goes_on_through_moves_there_and_back() {
    let mut ferry = Command::new(FERRY);
    ferry.args(["demo", "--pinball", "--json", "--seconds", "6"]);
    let output = ferry.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}{err}");
    let report: Value = serde_json::from_str(out.trim()).unwrap();
    assert!(report["frames"].as_u64() > Some(200), "{report}");
    assert_eq!(report["connections_reset"], 0, "{report}");
    assert_eq!(report["mismatches"], 0, "{report}");
    assert_eq!(report["sectors_checked"], report["frames"], "{report}");
    assert!(report["keys_sent"].as_u64() > Some(0), "{report}");
    assert!(report["longest_gap_ms"].as_f64() > Some(0.0), "{report}");
    let moves = report["moves"].as_array().unwrap();
    let routes: Vec<&Value> = moves.iter().map(|it| &it["route"]).collect();
    assert_eq!(routes, ["A to B", "B to A"], "{report}");
    for it in moves {
        assert!(it["rings_stopped_us"].as_u64() > Some(0), "{report}");
        assert!(it["nic_blackout_us"].as_u64() > Some(0), "{report}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for words in [["--seconds", "5"], ["--pinball", "--depth=8"]] {
        let mut ferry = Command::new(FERRY);
        let output = ferry.arg("demo").args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn a_player_at_a_terminal_sees_the_move_and_ends_the_game() {
    let mut terminal = Terminal::play("9");
    terminal.until("the table", |screen| {
        screen.contains("FERRY PINBALL") && screen.contains("host A | playing")
    });
    assert!(terminal.parser.screen().alternate_screen());
    assert!(terminal.parser.screen().hide_cursor());
    assert!(!terminal.is_cooked(), "keys come as they are pressed");
    for (key, column) in [(b"z", 14), (b"/", 19)] {
        // The first ends the autopilot.
        terminal.type_in(b"z");
        terminal.see("a flipper at rest", |it| !it.is_up(column));
        let began = Instant::now();
        while !terminal.is_up(column) {
            terminal.type_in(key);
            terminal.listen(Duration::from_millis(60));
            assert!(began.elapsed() < PATIENCE, "{}", terminal.text());
        }
    }
    terminal.until("the move", |screen| screen.contains("| moving... A to B"));
    terminal.until("the other host", |screen| screen.contains("host B |"));
    terminal.type_in(b"q");
    terminal.ends(0);
    let text = terminal.text();
    for word in ["A to B", "resets         0", "mismatches     0"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
}

#[test]
fn the_terminal_is_given_back_to_whoever_interrupts() {
    let mut terminal = Terminal::play("20");
    terminal.until("the table", |screen| screen.contains("host A | playing"));
    terminal.type_in(b"\x03");
    terminal.ends(0);

    let mut terminal = Terminal::play("20");
    terminal.until("the table", |screen| screen.contains("host A | playing"));
    let ferry = rustix::process::Pid::from_child(&terminal.child);
    rustix::process::kill_process(ferry, rustix::process::Signal::TERM).unwrap();
    terminal.ends(0);
}

#[test]
fn a_terminal_that_is_too_small_is_told_so() {
    let mut terminal = Terminal::sized("20", 20, 60);
    terminal.until("words", |screen| screen.contains("needs 80 x 24"));
    terminal.type_in(b"q");
    terminal.ends(0);
}

/// A pseudo-terminal with the game in it.
struct Terminal {
    child: Child,
    keyboard: File,
    /// Kept open, so that its modes can be seen when the game is over.
    line: OwnedFd,
    output: mpsc::Receiver<Vec<u8>>,
    parser: vt100::Parser,
}

impl Terminal {
    fn play(seconds: &str) -> Terminal {
        Terminal::sized(seconds, 24, 80)
    }

    fn sized(seconds: &str, rows: u16, columns: u16) -> Terminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let line = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&line, size).unwrap();
        let side = || Stdio::from(line.try_clone().unwrap());
        // It becomes the game, in a session of its own whose terminal this is.
        let child = Command::new("setsid")
            .args(["--ctty", FERRY, "demo", "--pinball", "--seconds", seconds])
            .env("TERM", "xterm-256color")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("setsid, of util-linux");
        let (to, output) = mpsc::channel();
        let mut reader = File::from(ours.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = reader.read(&mut bytes) {
                if count == 0 || to.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal {
            child,
            keyboard: ours.into(),
            line,
            output,
            parser: vt100::Parser::new(rows.try_into().unwrap(), columns.try_into().unwrap(), 0),
        }
    }

    fn type_in(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn text(&self) -> String {
        self.parser.screen().contents()
    }

    /// Has what comes within this time drawn.
    fn listen(&mut self, time: Duration) {
        let began = Instant::now();
        while let Some(left) = time.checked_sub(began.elapsed()) {
            if let Ok(bytes) = self.output.recv_timeout(left) {
                self.parser.process(&bytes);
            }
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        self.see(what, |it| wanted(&it.text()));
    }

    #[track_caller]
    fn see(&mut self, what: &str, wanted: impl Fn(&Terminal) -> bool) {
        let began = Instant::now();
        while !wanted(self) {
            let text = self.text();
            assert!(began.elapsed() < PATIENCE, "no sign of {what}:\n{text}");
            if let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(20)) {
                self.parser.process(&bytes);
            }
        }
    }

    /// Whether the tip of the flipper that ends in this column is up.
    fn is_up(&self, column: u16) -> bool {
        let filled = |row| {
            let cell = self.parser.screen().cell(row, column);
            cell.is_some_and(|cell| ["▀", "▄", "█"].contains(&cell.contents()))
        };
        let up = (16..=18).any(filled);
        up && !(20..=21).any(filled)
    }

    /// Whether the terminal is as shells want it.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.line).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// The game ends with this status, and the terminal is as before.
    #[track_caller]
    fn ends(&mut self, status: i32) {
        let began = Instant::now();
        let ended = loop {
            self.listen(Duration::from_millis(20));
            if let Some(ended) = self.child.try_wait().unwrap() {
                break ended;
            }
            assert!(began.elapsed() < PATIENCE, "no end:\n{}", self.text());
        };
        self.listen(Duration::from_millis(200));
        let text = self.text();
        assert_eq!(ended.code(), Some(status), "{text}");
        let screen = self.parser.screen();
        assert!(!screen.alternate_screen(), "{text}");
        assert!(!screen.hide_cursor(), "{text}");
        assert!(self.is_cooked(), "{text}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
