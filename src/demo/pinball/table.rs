//! The game: a ball, what it bounces off, and two flippers.
//!
//! It knows no clock and no randomness but its seed's, and computes with `+ - * /` and square roots
//! alone: with the same keys in the same frames it is the same game everywhere.

/// Frames in a second.
pub const FRAMES_PER_S: u32 = 60;
/// The table; a unit is a column of the terminal wide, and half a row high.
pub const WIDTH: f64 = 32.0;
/// Its lower end, where balls are lost.
pub const HEIGHT: f64 = 44.0;
/// Bumpers: where, and how large.
pub const BUMPERS: [(f64, f64, f64); 4] = [
    (9.0, 11.0, 2.0),
    (23.0, 11.0, 2.0),
    (16.0, 18.0, 2.0),
    (16.0, 6.0, 1.2),
];
/// Where the slopes begin at the walls, and the flippers at the slopes.
pub const SLOPES_Y: (f64, f64) = (31.0, 36.0);
/// How far the flippers' pivots are from the walls.
pub const PIVOT_X: f64 = 8.0;
/// Length of a flipper.
pub const FLIPPER: f64 = 6.4;
/// Key bits: the left flipper's, the right one's.
pub const KEYS: [u8; 2] = [1, 2];

const STEPS: u32 = 8;
const DT: f64 = 1.0 / (FRAMES_PER_S * STEPS) as f64;
const BALL: f64 = 0.7;
const GRAVITY: f64 = 32.0;
const SPEED_MAX: f64 = 55.0;
const BUMPER_KICK: f64 = 9.0;
const BUMPER_SCORE: u32 = 100;
/// Of the speed towards it, what a wall gives back.
const BOUNCE: f64 = 0.55;
/// Frames that a key holds its flipper up, as terminals do not tell when it is let go.
const HOLD: u8 = 9;
/// Of its way, what a flipper does in a frame.
const FLIP: f64 = 0.25;
/// Frames that a bumper is lit.
const LIT: u8 = 8;

#[derive(Debug, Clone, Copy)]
struct Flipper {
    /// From 0, down, to 1.
    lift: f64,
    hold: u8,
}

/// The game at a frame.
#[derive(Debug, Clone)]
pub struct Table {
    pub x: f64,
    pub y: f64,
    pub vx: f64,
    pub vy: f64,
    pub score: u32,
    /// Balls so far, this one too.
    pub balls: u16,
    lit: [u8; BUMPERS.len()],
    flippers: [Flipper; 2],
    random: u64,
}

/// Where a flipper begins, and how it points when it is lifted so far.
pub fn flipper(side: usize, lift: f64) -> ((f64, f64), (f64, f64)) {
    let (down, up) = ((0.87, 0.5), (0.87, -0.5));
    let (x, y) = (
        down.0 + (up.0 - down.0) * lift,
        down.1 + (up.1 - down.1) * lift,
    );
    let long = (x * x + y * y).sqrt();
    let (x, y) = (x / long, y / long);
    match side {
        0 => ((PIVOT_X, SLOPES_Y.1), (x, y)),
        _ => ((WIDTH - PIVOT_X, SLOPES_Y.1), (-x, y)),
    }
}

impl Table {
    pub fn new(seed: u64) -> Table {
        let mut table = Table {
            x: 0.0,
            y: 0.0,
            vx: 0.0,
            vy: 0.0,
            score: 0,
            balls: 0,
            lit: [0; BUMPERS.len()],
            flippers: [Flipper { lift: 0.0, hold: 0 }; 2],
            // Not zero, which would stay so.
            random: seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1,
        };
        table.new_ball();
        table
    }

    /// From -1 to 1.
    fn draw(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // 32 bits, which are exact.
        f64::from((self.random >> 32) as u32) / f64::from(u32::MAX) * 2.0 - 1.0
    }

    fn new_ball(&mut self) {
        self.balls = self.balls.wrapping_add(1);
        (self.x, self.y) = (WIDTH / 2.0 + self.draw() * 10.0, 2.0);
        (self.vx, self.vy) = (self.draw() * 14.0, 4.0);
    }

    /// How far each flipper is up, from 0 to 255.
    pub fn lifts(&self) -> [u8; 2] {
        #[expect(clippy::cast_possible_truncation, reason = "a lift is from 0 to 1")]
        self.flippers.map(|it| (it.lift * 255.0) as u8)
    }

    /// A bit for each bumper that was just hit.
    pub fn lit(&self) -> u8 {
        let bits = self.lit.iter().enumerate();
        bits.fold(0, |bits, (at, lit)| bits | u8::from(*lit > 0) << at)
    }

    /// One frame, with the keys that were pressed in it.
    pub fn frame(&mut self, keys: u8) {
        for (side, flipper) in self.flippers.iter_mut().enumerate() {
            flipper.hold = if keys & KEYS[side] != 0 {
                HOLD
            } else {
                flipper.hold.saturating_sub(1)
            };
        }
        for lit in &mut self.lit {
            *lit = lit.saturating_sub(1);
        }
        for _ in 0..STEPS {
            self.step();
        }
        if self.y > HEIGHT {
            self.new_ball();
        }
    }

    fn step(&mut self) {
        self.vy += GRAVITY * DT;
        let speed = (self.vx * self.vx + self.vy * self.vy).sqrt();
        if speed > SPEED_MAX {
            self.vx *= SPEED_MAX / speed;
            self.vy *= SPEED_MAX / speed;
        }
        self.x += self.vx * DT;
        self.y += self.vy * DT;
        self.walls();
        for at in 0..BUMPERS.len() {
            self.bumper(at);
        }
        for side in 0..2 {
            self.flip(side);
        }
    }

    fn walls(&mut self) {
        if self.x < BALL {
            self.bounce((BALL - self.x, 0.0), (1.0, 0.0), (0.0, 0.0), BOUNCE);
        }
        if self.x > WIDTH - BALL {
            let push = (WIDTH - BALL - self.x, 0.0);
            self.bounce(push, (-1.0, 0.0), (0.0, 0.0), BOUNCE);
        }
        if self.y < BALL {
            self.bounce((0.0, BALL - self.y), (0.0, 1.0), (0.0, 0.0), BOUNCE);
        }
        let (top, low) = SLOPES_Y;
        self.line((0.0, top), (PIVOT_X, low), (0.0, 0.0));
        self.line((WIDTH, top), (WIDTH - PIVOT_X, low), (0.0, 0.0));
    }

    fn bumper(&mut self, at: usize) {
        let (x, y, radius) = BUMPERS[at];
        let (dx, dy) = (self.x - x, self.y - y);
        let far = (dx * dx + dy * dy).sqrt();
        if far >= radius + BALL || far == 0.0 {
            return;
        }
        let normal = (dx / far, dy / far);
        let deep = radius + BALL - far;
        self.bounce((normal.0 * deep, normal.1 * deep), normal, (0.0, 0.0), 1.0);
        self.vx += normal.0 * BUMPER_KICK;
        self.vy += normal.1 * BUMPER_KICK;
        self.score = self.score.wrapping_add(BUMPER_SCORE);
        self.lit[at] = LIT;
    }

    fn flip(&mut self, side: usize) {
        let it = &mut self.flippers[side];
        let before = it.lift;
        let way = FLIP / f64::from(STEPS);
        it.lift = if it.hold > 0 {
            (before + way).min(1.0)
        } else {
            (before - way).max(0.0)
        };
        let (pivot, was) = flipper(side, before);
        let (_, is) = flipper(side, it.lift);
        let turn = ((is.0 - was.0) / DT, (is.1 - was.1) / DT);
        let tip = (pivot.0 + is.0 * FLIPPER, pivot.1 + is.1 * FLIPPER);
        self.line(pivot, tip, turn);
    }

    /// A line from `a` to `b` that turns about `a`: `turn` is the speed of what is a unit away from it.
    fn line(&mut self, a: (f64, f64), b: (f64, f64), turn: (f64, f64)) {
        let (lx, ly) = (b.0 - a.0, b.1 - a.1);
        let long = (lx * lx + ly * ly).sqrt();
        let along = ((self.x - a.0) * lx + (self.y - a.1) * ly) / long;
        let along = along.clamp(0.0, long);
        let (dx, dy) = (
            self.x - (a.0 + lx / long * along),
            self.y - (a.1 + ly / long * along),
        );
        let far = (dx * dx + dy * dy).sqrt();
        if far >= BALL || far == 0.0 {
            return;
        }
        let normal = (dx / far, dy / far);
        let deep = BALL - far;
        let surface = (turn.0 * along, turn.1 * along);
        self.bounce((normal.0 * deep, normal.1 * deep), normal, surface, BOUNCE);
    }

    /// Off a surface that moves so.
    fn bounce(
        &mut self,
        push: (f64, f64),
        normal: (f64, f64),
        surface: (f64, f64),
        gives_back: f64,
    ) {
        self.x += push.0;
        self.y += push.1;
        let towards = (self.vx - surface.0) * normal.0 + (self.vy - surface.1) * normal.1;
        if towards < 0.0 {
            let change = -towards * (1.0 + gives_back);
            self.vx += normal.0 * change;
            self.vy += normal.1 * change;
        }
    }
}

/// Which keys a player of some skill would press: a flipper's when the ball is about to fall on it.
pub fn autopilot((x, y): (f64, f64), vy: f64) -> u8 {
    let reach = SLOPES_Y.1 - 1.0..SLOPES_Y.1 + 3.5;
    if vy < 0.0 || !reach.contains(&y) {
        return 0;
    }
    let left = (PIVOT_X + 1.0..WIDTH / 2.0 + 0.8).contains(&x);
    let right = (WIDTH / 2.0 - 0.8..WIDTH - PIVOT_X - 1.0).contains(&x);
    (if left { KEYS[0] } else { 0 }) | (if right { KEYS[1] } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(seed: u64, frames: u32, player: impl Fn(&Table) -> u8) -> Table {
        let mut table = Table::new(seed);
        for _ in 0..frames {
            let keys = player(&table);
            table.frame(keys);
            assert!((0.0..=WIDTH).contains(&table.x), "{table:?}");
            assert!((0.0..=HEIGHT).contains(&table.y), "{table:?}");
        }
        table
    }

    #[test]
    fn the_same_keys_are_the_same_game() {
        let skilled = |table: &Table| autopilot((table.x, table.y), table.vy);
        for seed in 0..20 {
            let (one, other) = (play(seed, 3000, skilled), play(seed, 3000, skilled));
            assert_eq!(format!("{one:?}"), format!("{other:?}"));
        }
        let (one, other) = (play(1, 500, skilled), play(2, 500, skilled));
        assert_ne!(one.x, other.x, "another seed is another game");
    }

    #[test]
    fn flippers_keep_the_ball_in_play() {
        let skilled = |table: &Table| autopilot((table.x, table.y), table.vy);
        let (mut lazy, mut busy) = (0, 0);
        for seed in 0..20 {
            lazy += u32::from(play(seed, 3600, |_| 0).balls);
            busy += u32::from(play(seed, 3600, skilled).balls);
        }
        assert!(busy * 3 < lazy * 2, "{busy} balls, and {lazy} without keys");
    }
}
