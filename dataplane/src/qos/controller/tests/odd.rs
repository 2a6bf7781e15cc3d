//! What hosts should not say, and settings that nobody should choose.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[test]
fn a_host_that_lies_about_its_window_moves_the_others_little() {
    for lie in [0.01, 4.0, 65_536.0, f64::INFINITY] {
        let mut plant = Plant::new();
        hosts(&mut plant, 1, &[(1000.0, 500.0)]);
        plant.liar = Some(HostReport {
            window_total: lie,
            ..HostReport::default()
        });
        plant.run(30.0);
        plant.taken();
        plant.run(10.0);
        let (latency_ms, units) = plant.taken();
        assert!(
            (25.0..35.0).contains(&latency_ms) && units > 7900.0,
            "{lie}: {latency_ms} {units}"
        );
    }
}

fn any_report() -> impl Strategy<Value = HostReport> {
    let number = proptest::num::f64::ANY;
    let wants = vec((number, number), 0..4);
    (
        any::<u64>(),
        any::<u64>(),
        number,
        number,
        any::<bool>(),
        wants,
        number,
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(ios, latency_ns, units, outstanding, limited, wants, window_total, flags)| {
                let (unmanaged, late) = flags;
                let mut demand = Bins::default();
                wants
                    .iter()
                    .for_each(|&(shares, slots)| demand.add(Want { shares, slots }));
                HostReport {
                    ios,
                    latency_ns,
                    units,
                    outstanding,
                    limited,
                    demand,
                    window_total,
                    unmanaged,
                    late,
                }
            },
        )
}

proptest! {
    #[test]
    fn whatever_the_others_say_this_host_can_work(
        odd in vec(any_report(), 1..4), keep in any::<bool>(), hosts in any::<bool>(),
    ) {
        let unmanaged = if keep { UnmanagedPolicy::Keep } else { UnmanagedPolicy::Stop };
        let division = if hosts { Division::Hosts } else { Division::Disks };
        let mut controller = Controller::new(Settings { unmanaged, division, ..settings() });
        let mut own = HostReport { ios: 4000, units: 4000.0, outstanding: 120.0, window_total: f64::INFINITY, ..HostReport::default() };
        own.demand.add(Want { shares: 1000.0, slots: 120.0 });
        for (period, own_latency_ms) in (0..20).zip([10u64, 40, 90].into_iter().cycle()) {
            own.latency_ns = own_latency_ms * 1_000_000;
            own.limited = period % 2 == 0;
            let decision = controller.update(period * PERIOD_NS, &own, &odd);
            prop_assert!(decision.window >= 0.1, "{decision:?}");
            prop_assert!(decision.window_total >= 4.0, "{decision:?}");
            prop_assert!(decision.level >= 0.0);
            own.window_total = decision.window_total;
        }
    }

    #[test]
    fn settings_are_set_right(a in proptest::num::f64::ANY, b in proptest::num::f64::ANY, c in proptest::num::f64::ANY) {
        let odd = Settings { window_min: a, window_max: b, gain: c, smoothing: a, ..Settings::new(0, 0) };
        let controller = Controller::new(odd);
        let checked = controller.settings();
        prop_assert!(checked.window_min > 0.0 && checked.window_max >= checked.window_min);
        prop_assert!(checked.gain > 0.0 && checked.gain <= 1.0 && checked.smoothing > 0.0);
    }
}
