//! The game in a terminal.

use std::io::{BufWriter, Stdout, Write, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::style::{Color, Print, ResetColor, SetForegroundColor};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{cursor, execute, queue};

use super::record::Record;
use super::table::{BUMPERS, FLIPPER, HEIGHT, KEYS, PIVOT_X, SLOPES_Y, WIDTH, flipper};
use super::{Scene, Shared};
use crate::error::Done;

const COLUMNS: u16 = 80;
const ROWS: u16 = 24;
/// Where the words beside the table begin.
const PANEL: usize = 38;
/// Between two drawn frames.
const PACE: Duration = Duration::from_millis(16);
const WALL: Color = Color::DarkGrey;
const PADDLE: Color = Color::Cyan;

/// A terminal that the game has taken over. Dropping it gives it back.
pub struct Screen {
    out: BufWriter<Stdout>,
    /// What stands there.
    shown: Vec<Vec<Cell>>,
}

type Cell = (char, Option<Color>);

/// Gives the terminal back, as well as that can be done.
fn restore() {
    let _ = execute!(
        stdout(),
        EndSynchronizedUpdate,
        cursor::Show,
        LeaveAlternateScreen
    );
    let _ = disable_raw_mode();
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.out.flush();
        restore();
    }
}

impl Screen {
    /// Takes the terminal over.
    pub fn open() -> Done<Screen> {
        enable_raw_mode()?;
        let screen = Screen {
            out: BufWriter::new(stdout()),
            shown: Vec::new(),
        };
        // A panic ends the process without any drop.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        execute!(stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Draws, and passes keys on, until the game is over. A key, or a signal, that ends the game sets
    /// `quit`.
    pub fn run(&mut self, shared: &Shared, quit: &AtomicBool) -> Done {
        while !shared.over.load(Ordering::Acquire) {
            while event::poll(Duration::ZERO)? {
                match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        press(key, shared, quit);
                    }
                    Event::Resize(..) => self.shown.clear(),
                    _ => {}
                }
            }
            let cells = picture(&shared.scene(), quit.load(Ordering::Relaxed));
            self.draw(cells)?;
            std::thread::sleep(PACE);
        }
        Ok(())
    }

    fn draw(&mut self, cells: Vec<Vec<Cell>>) -> Done {
        queue!(self.out, BeginSynchronizedUpdate)?;
        let (columns, rows) = size().unwrap_or((COLUMNS, ROWS));
        if columns < COLUMNS || rows < ROWS {
            queue!(self.out, Clear(ClearType::All), cursor::MoveTo(0, 0))?;
            let words = format!("the game needs {COLUMNS} x {ROWS} characters");
            let words: String = words.chars().take(columns.into()).collect();
            queue!(self.out, Print(words))?;
            self.shown.clear();
        } else {
            if self.shown.is_empty() {
                queue!(self.out, Clear(ClearType::All))?;
            }
            for (row, line) in (0..).zip(&cells) {
                if self.shown.get(usize::from(row)) != Some(line) {
                    queue!(self.out, cursor::MoveTo(0, row))?;
                    print(&mut self.out, line)?;
                }
            }
            self.shown = cells;
        }
        queue!(self.out, EndSynchronizedUpdate)?;
        self.out.flush()?;
        Ok(())
    }
}

fn print(out: &mut impl Write, line: &[Cell]) -> Done {
    for part in line.chunk_by(|one, next| one.1 == next.1) {
        let words: String = part.iter().map(|cell| cell.0).collect();
        match part[0].1 {
            Some(color) => queue!(out, SetForegroundColor(color), Print(words), ResetColor)?,
            None => queue!(out, Print(words))?,
        }
    }
    Ok(())
}

fn press(key: KeyEvent, shared: &Shared, quit: &AtomicBool) {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let keys = match key.code {
        KeyCode::Char('q') | KeyCode::Esc => 0,
        KeyCode::Char('c') if control => 0,
        KeyCode::Left | KeyCode::Char('z') => KEYS[0],
        KeyCode::Right | KeyCode::Char('/') => KEYS[1],
        KeyCode::Char(' ') | KeyCode::Up => KEYS[0] | KEYS[1],
        _ => return,
    };
    if keys == 0 {
        quit.store(true, Ordering::Relaxed);
    } else {
        shared.keyed.store(true, Ordering::Relaxed);
        shared.keys.fetch_or(keys, Ordering::AcqRel);
    }
}

/// The screen as rows of characters.
fn picture(scene: &Scene, quitting: bool) -> Vec<Vec<Cell>> {
    let blank = vec![(' ', None); COLUMNS.into()];
    let mut cells = vec![blank; ROWS.into()];
    walls(&mut cells);
    if let Some(record) = &scene.latest {
        pieces(&mut cells, record);
    }
    words(&mut cells, scene);
    let host = ["A", "B"][scene.host];
    let note = if quitting { "ending" } else { &scene.note };
    let gap = scene.longest_gap.as_secs_f64() * 1e3;
    let status = format!("host {host} | {note} | longest gap {gap:.1} ms");
    let color = scene.note.starts_with("moving").then_some(Color::Yellow);
    write(&mut cells, (0, usize::from(ROWS) - 1), &status, color);
    cells
}

fn write(
    cells: &mut [Vec<Cell>],
    (column, row): (usize, usize),
    words: &str,
    color: Option<Color>,
) {
    let Some(line) = cells.get_mut(row) else {
        return;
    };
    for (cell, letter) in line.iter_mut().skip(column).zip(words.chars()) {
        *cell = (letter, color);
    }
}

/// The unit of the table that something is in.
#[expect(
    clippy::cast_possible_truncation,
    reason = "what is not on the table is not drawn"
)]
fn unit(at: f64) -> usize {
    at.max(0.0) as usize
}

/// Fills half a cell of the table.
fn dot(cells: &mut [Vec<Cell>], (x, y): (f64, f64), color: Color) {
    if !(0.0..WIDTH).contains(&x) || !(0.0..HEIGHT).contains(&y) {
        return;
    }
    let (column, half) = (1 + unit(x), unit(y));
    let cell = &mut cells[1 + half / 2][column];
    let letter = match (cell.0, half % 2) {
        ('▄' | '█', 0) | ('▀' | '█', 1) => '█',
        (_, 0) => '▀',
        _ => '▄',
    };
    *cell = (letter, Some(color));
}

fn line(cells: &mut [Vec<Cell>], from: (f64, f64), way: (f64, f64), color: Color) {
    for step in 0..=32 {
        let at = f64::from(step) / 32.0;
        dot(cells, (from.0 + way.0 * at, from.1 + way.1 * at), color);
    }
}

fn walls(cells: &mut [Vec<Cell>]) {
    let (columns, wall) = (unit(WIDTH), Some(WALL));
    write(cells, (1, 0), &"─".repeat(columns), wall);
    for row in 1..usize::from(ROWS) - 1 {
        write(cells, (0, row), "│", wall);
        write(cells, (columns + 1, row), "│", wall);
    }
    write(cells, (0, 0), "┌", wall);
    write(cells, (columns + 1, 0), "┐", wall);
    let (top, low) = SLOPES_Y;
    line(cells, (0.0, top), (PIVOT_X, low - top), WALL);
    let right = WIDTH - 0.01;
    line(cells, (right, top), (-PIVOT_X, low - top), WALL);
}

fn pieces(cells: &mut [Vec<Cell>], record: &Record) {
    for (at, (x, y, radius)) in BUMPERS.into_iter().enumerate() {
        let lit = record.lit & 1 << at != 0;
        let color = if lit { Color::Yellow } else { Color::Blue };
        bumper(cells, (x, y), radius, color);
    }
    for (side, lift) in record.lifts.into_iter().enumerate() {
        let (pivot, way) = flipper(side, f64::from(lift) / 255.0);
        let way = (way.0 * FLIPPER, way.1 * FLIPPER);
        line(cells, pivot, way, PADDLE);
    }
    let (x, y) = record.ball;
    let (column, row) = (1 + unit(x), 1 + unit(y) / 2);
    if row < usize::from(ROWS) - 1 {
        write(cells, (column, row), "●", Some(Color::White));
    }
}

fn bumper(cells: &mut [Vec<Cell>], (x, y): (f64, f64), radius: f64, color: Color) {
    let middles = || (-3..=3).map(|away| f64::from(away) + 0.5);
    for (dx, dy) in middles().flat_map(|dx| middles().map(move |dy| (dx, dy))) {
        let (px, py) = (x.floor() + dx, y.floor() + dy);
        let (dx, dy) = (px - x, py - y);
        if dx * dx + dy * dy < radius * radius {
            dot(cells, (px, py), color);
        }
    }
}

fn words(cells: &mut [Vec<Cell>], scene: &Scene) {
    let (score, balls) = scene.latest.map_or((0, 0), |it| (it.score, it.balls));
    let host = |at: usize| if scene.host == at { "[*]" } else { "[ ]" };
    let lines = [
        (1, "FERRY PINBALL".to_owned()),
        (3, format!("score        {score}")),
        (4, format!("ball         {balls}")),
        (5, format!("frame        {}", scene.frames)),
        (7, format!("host A {} ======== {} host B", host(0), host(1))),
        (8, format!("moves        {}", scene.moves)),
        (20, "z, left      left flipper".to_owned()),
        (21, "/, right     right flipper".to_owned()),
        (22, "q            ends the game".to_owned()),
    ];
    for (row, words) in &lines {
        write(cells, (PANEL, *row), words, None);
    }
    let told = scene.story.iter().flat_map(|line| wrap(line));
    let told: Vec<String> = told.collect();
    // The last of them, as far as there is room.
    let first = told.len().saturating_sub(9);
    for (row, words) in (10..).zip(&told[first..]) {
        write(cells, (PANEL, row), words, Some(Color::DarkGrey));
    }
}

/// Cuts at spaces.
fn wrap(text: &str) -> Vec<String> {
    let room = usize::from(COLUMNS) - PANEL;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
