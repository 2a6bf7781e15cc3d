//! Is somebody else on the datastore? Told by what our own window does to its latency.
//!
//! While all requests are ours, a window cut by a third cuts the latency by a third: what a device gives
//! is the same, and less waits for it. The elasticity of latency to the window, `d ln L / d ln W`, is 1.
//! With an outsider that keeps `u` requests there whatever we do it is `w / (w + u)`: once the outsider has
//! more there than we have, it is below a half. A slower device (a rebuild, garbage collection) raises the
//! latency just as much, but leaves the elasticity at 1 from then on.
//!
//! Put in another way, elasticity below 1 means that our throughput falls with our window; and that is what
//! is added up, over the steps in which the window was really cut while the latency was too high. Two such
//! steps in a row and a clear loss make a finding. How clear it must be depends on how restless the
//! datastore's throughput has been: a device that pauses for its own purposes at all times looks for a
//! step or two as if somebody else were there.

/// Latency above which it is worth asking, as a multiple of the threshold.
const TOO_HIGH: f64 = 1.1;
/// A cut that tells something: by a fifth.
const CUT: f64 = -0.223;
/// Elasticity below which the outsider has more at the device than we have.
const ELASTIC: f64 = 0.5;
/// Steps in a row that must show it.
const STEPS: u32 = 2;
/// A latency that still rises while the window is cut is a change under way, not an outsider that stays;
/// at least until there are more steps.
const RISING: f64 = -0.25;
/// Steps that tell nothing, after which older ones do not count any more.
const PATIENCE: u32 = 8;
/// The loss of throughput that is clear on a calm datastore, as a logarithm; and by how many times its
/// usual losses on a restless one.
const LOSS: f64 = 0.2;
const LOSS_BY_NOISE: f64 = 6.0;
/// How fast the usual losses are learnt, and forgotten.
const LEARN: f64 = 0.005;

/// Watches one datastore.
#[derive(Debug, Clone, Default)]
pub struct Detector {
    last: Option<Point>,
    /// Mean square of what is lost of the throughput from one look to the next, as a logarithm, while the
    /// latency is too high.
    noise: f64,
    run: Run,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    window: f64,
    latency: f64,
}

/// Steps in a row that point to an outsider.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    steps: u32,
    idle: u32,
    cut: f64,
    loss: f64,
    noise: f64,
}

impl Detector {
    /// Takes what was outstanding at the device and how long it took, for all hosts. Gives the elasticity
    /// when it has found an outsider.
    pub fn look(&mut self, outstanding: f64, latency_ns: f64, threshold_ns: f64) -> Option<f64> {
        let real = |it: f64| it > 0.0 && it.is_finite();
        if !real(outstanding) || !real(latency_ns) {
            self.forget();
            return None;
        }
        let now = Point {
            window: outstanding.ln(),
            latency: latency_ns.ln(),
        };
        let last = self.last.replace(now)?;
        let cut = now.window - last.window;
        let gain = cut - (now.latency - last.latency);
        let noise = self.noise;
        let high = latency_ns > TOO_HIGH * threshold_ns;
        let loss = if high { (-gain).max(0.0) } else { 0.0 };
        self.noise += LEARN * (loss * loss - self.noise);
        if !high {
            self.run = Run::default();
            return None;
        }
        if cut > CUT {
            self.run.idle += 1;
            if self.run.idle > PATIENCE {
                self.run = Run::default();
            }
            return None;
        }
        let elasticity = 1.0 - gain / cut;
        if elasticity >= ELASTIC {
            self.run = Run::default();
            return None;
        }
        self.run.add(cut, -gain, noise);
        let settled = elasticity > RISING;
        if !settled || !self.run.is_clear() {
            return None;
        }
        Some(self.run.elasticity())
    }

    /// Starts afresh: the last steps were not for the controller's sake.
    pub fn forget(&mut self) {
        self.last = None;
        self.run = Run::default();
    }
}

impl Run {
    fn add(&mut self, cut: f64, loss: f64, noise: f64) {
        if self.steps == 0 {
            self.noise = noise;
        }
        self.steps += 1;
        self.idle = 0;
        self.cut += cut;
        self.loss += loss;
    }

    fn is_clear(&self) -> bool {
        self.steps >= STEPS && self.loss >= LOSS.max(LOSS_BY_NOISE * self.noise.sqrt())
    }

    fn elasticity(&self) -> f64 {
        1.0 + self.loss / self.cut
    }
}

#[cfg(test)]
mod tests;
