//! A provider's own count of what it is asked, by its documents. It knows nothing of the product.

use std::collections::VecDeque;

/// Times are milliseconds of the day.
pub enum Limiter {
    Windows(Windows),
    Points(Points),
    Day(Day),
}

impl Limiter {
    /// So many requests in any span of that length, and in windows that follow one another as well: documents seldom say
    /// which of the two is meant.
    pub fn windows(max: usize, per_ms: i64) -> Self {
        Self::Windows(Windows { max, per_ms, rolling: VecDeque::new(), window: 0, in_window: 0 })
    }

    /// A leaky bucket that holds `max` points, and gets back so many in a second.
    pub fn points(max: u32, secondly: u32) -> Self {
        Self::Points(Points {
            max: max.into(),
            each_ms: f64::from(secondly) / 1000.0,
            held: max.into(),
            at: 0,
        })
    }

    /// A quota that is full again at that time of the day.
    pub fn day(max: u32, resets_at: i64) -> Self {
        Self::Day(Day { max, left: max, resets_at, today: i64::MIN })
    }

    /// Whether a request that arrives now, and takes `points` at most, is let in.
    pub fn admits(&mut self, at: i64, points: u32) -> bool {
        match self {
            Self::Windows(windows) => windows.admits(at),
            Self::Points(bucket) => bucket.now(at) >= f64::from(points),
            Self::Day(day) => day.admits(at),
        }
    }

    /// What a request that was let in has cost after all.
    pub fn charge(&mut self, points: u32) {
        if let Self::Points(bucket) = self {
            bucket.held -= f64::from(points);
        }
    }

    /// What is there, and what is left of it.
    pub fn stand(&self) -> (u32, u32) {
        match self {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "never more than `max`"
            )]
            Self::Points(bucket) => (bucket.max as u32, bucket.held.max(0.0) as u32),
            Self::Day(day) => (day.max, day.left),
            Self::Windows(windows) => {
                let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                (number(windows.max), number(windows.max - windows.rolling.len()))
            }
        }
    }
}

pub struct Windows {
    max: usize,
    per_ms: i64,
    rolling: VecDeque<i64>,
    window: i64,
    in_window: usize,
}

impl Windows {
    fn admits(&mut self, at: i64) -> bool {
        while self.rolling.front().is_some_and(|arrived| at - arrived >= self.per_ms) {
            self.rolling.pop_front();
        }
        if at.div_euclid(self.per_ms) != self.window {
            (self.window, self.in_window) = (at.div_euclid(self.per_ms), 0);
        }
        if self.rolling.len() >= self.max || self.in_window >= self.max {
            return false;
        }
        self.rolling.push_back(at);
        self.in_window += 1;
        true
    }
}

pub struct Points {
    max: f64,
    each_ms: f64,
    held: f64,
    at: i64,
}

impl Points {
    fn now(&mut self, at: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a day's milliseconds")]
        let passed = (at - self.at) as f64;
        self.at = at;
        self.held = (self.held + passed * self.each_ms).min(self.max);
        self.held
    }
}

pub struct Day {
    max: u32,
    left: u32,
    resets_at: i64,
    today: i64,
}

impl Day {
    fn admits(&mut self, at: i64) -> bool {
        let day = (at - self.resets_at).div_euclid(super::DAY);
        if day != self.today {
            (self.today, self.left) = (day, self.max);
        }
        let admitted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        admitted
    }
}

/// A model that lets everything in would prove nothing.
#[test]
fn limiters_refuse_what_is_too_much() {
    let taken = |limiter: &mut Limiter, at, points| {
        (0..200)
            .take_while(|_| {
                let admitted = limiter.admits(at, points);
                limiter.charge(points);
                admitted
            })
            .count()
    };
    let mut windows = Limiter::windows(5, 1000);
    assert_eq!(
        [(900, 5), (1100, 0), (1899, 0), (1900, 5)].map(|(at, _)| taken(&mut windows, at, 1)),
        [5, 0, 0, 5]
    );
    let mut points = Limiter::points(1000, 50);
    assert_eq!(
        [taken(&mut points, 0, 100), taken(&mut points, 1999, 100), taken(&mut points, 60_000, 100)],
        [10, 0, 10]
    );
    let mut day = Limiter::day(3, 5000);
    assert_eq!([0, 4999, 5000, 6000].map(|at| taken(&mut day, at, 1)), [3, 0, 3, 0]);
}
