use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0x52, 0x54, a, b, c, d])
}

#[test]
fn the_hash_is_siphash() {
    // The library's hasher is SipHash-1-3 with keys of 0.
    for message in [0, 1, 0x5254_0012_3456, u64::MAX] {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(message);
        assert_eq!(siphash([0, 0], message), hasher.finish());
    }
}

#[test]
fn an_address_is_found_where_it_was_heard() {
    let mut table = Table::new(1);
    table.learn(mac(1), 0, 7, 0);
    table.learn(mac(1), 5, 8, 0);
    assert_eq!(table.find(mac(1), 0, 1), Some(7));
    assert_eq!(table.find(mac(1), 5, 1), Some(8));
    assert_eq!(table.find(mac(1), 6, 1), None);
    assert_eq!(table.find(mac(2), 0, 1), None);
    assert_eq!((table.known(1), table.moves()), (2, 0));
    table.learn(mac(1), 0, 9, 2);
    assert_eq!(table.find(mac(1), 0, 2), Some(9));
    assert_eq!((table.known(2), table.moves()), (2, 1));
}

#[test]
fn only_stations_are_learnt() {
    let mut table = Table::new(1);
    for wrong in [Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1]), Mac::default()] {
        table.learn(wrong, 3, 7, 0);
        assert_eq!(table.find(wrong, 3, 0), None);
        assert_eq!(table.find(wrong, 0, 0), None);
    }
    assert_eq!(table.known(0), 0);
}

#[test]
fn an_address_ages_and_a_frame_makes_it_young() {
    let mut table = Table::new(1);
    table.learn(mac(1), 0, 7, 0);
    assert_eq!(table.find(mac(1), 0, AGE_NS), Some(7));
    assert_eq!(table.find(mac(1), 0, AGE_NS + 1), None);
    // Young enough: nothing is written.
    table.learn(mac(1), 0, 7, REFRESH_NS);
    assert_eq!(table.find(mac(1), 0, AGE_NS + 1), None);
    table.learn(mac(1), 0, 7, REFRESH_NS + 1);
    assert_eq!(table.find(mac(1), 0, AGE_NS + REFRESH_NS + 1), Some(7));
    // Who comes back elsewhere after that time did not move.
    table.learn(mac(1), 0, 8, 3 * AGE_NS);
    assert_eq!(table.moves(), 0);
}

#[test]
fn a_port_that_goes_takes_its_addresses_along() {
    let mut table = Table::new(1);
    for number in 0..100 {
        table.learn(mac(number), 0, u16::try_from(number % 2).unwrap(), 0);
    }
    table.forget_port(1);
    assert_eq!(table.known(0), 50);
    assert_eq!(table.find(mac(1), 0, 0), None);
    assert_eq!(table.find(mac(2), 0, 0), Some(0));
}

#[test]
fn a_full_bucket_gives_up_its_oldest() {
    let mut table = Table::new(3);
    let index = table.bucket_of(key(mac(0), 0));
    let mut same = (0..).filter(|&it| table.bucket_of(key(mac(it), 0)) == index);
    let neighbours: Vec<u32> = same.by_ref().take(WAYS + 1).collect();
    for (now_ns, number) in (10..).zip(&neighbours[..WAYS]) {
        table.learn(mac(*number), 0, 1, now_ns);
    }
    // The third was not heard of for longest, once the first two spoke again.
    let later = 2 * REFRESH_NS;
    table.learn(mac(neighbours[0]), 0, 1, later);
    table.learn(mac(neighbours[1]), 0, 1, later);
    table.learn(mac(neighbours[WAYS]), 0, 2, later);
    for (way, number) in neighbours.iter().enumerate() {
        let expected = match way {
            2 => None,
            WAYS => Some(2),
            _ => Some(1),
        };
        assert_eq!(table.find(mac(*number), 0, later), expected, "{way}");
    }
    assert_eq!((table.known(later), table.replaced()), (WAYS, 1));
}

#[test]
fn the_seed_decides_who_meets() {
    let (one, other) = (Table::new(1), Table::new(2));
    let meets = |table: &Table, number| {
        table.bucket_of(key(mac(number), 0)) == table.bucket_of(key(mac(0), 0))
    };
    let in_one: Vec<u32> = (1..20_000).filter(|&it| meets(&one, it)).collect();
    let in_both = in_one.iter().filter(|&&it| meets(&other, it)).count();
    assert!((20..60).contains(&in_one.len()), "{}", in_one.len());
    assert!(in_both <= 3, "{in_both}");
}

#[test]
fn most_of_a_thousand_addresses_find_room() {
    let mut table = Table::new(11);
    for number in 0..1000 {
        table.learn(mac(number), 0, 1, 0);
    }
    assert!(table.known(0) >= 995, "{}", table.known(0));
}

#[derive(Debug, Clone)]
enum Step {
    Learn(u32, u16, u16),
    Forget(u16),
    Wait(u64),
}

fn steps(macs: u32) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..macs, 0u16..3, 0u16..4).prop_map(|(mac, vlan, port)| Step::Learn(mac, vlan, port)),
        1 => (0u16..4).prop_map(Step::Forget),
        2 => prop_oneof![1..REFRESH_NS * 2, 1..AGE_NS * 2].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..200)
}

/// A table without bounds: port, and the time that counts for the age.
#[derive(Default)]
struct Model(HashMap<(u32, u16), (u16, u64)>);

impl Model {
    fn step(&mut self, step: &Step, now_ns: u64) {
        match *step {
            Step::Learn(mac, vlan, port) => {
                let entry = self.0.entry((mac, vlan)).or_insert((port, now_ns));
                if entry.0 != port || now_ns - entry.1 > REFRESH_NS {
                    *entry = (port, now_ns);
                }
            }
            Step::Forget(port) => self.0.retain(|_, entry| entry.0 != port),
            Step::Wait(_) => {}
        }
    }

    fn find(&self, mac: u32, vlan: u16, now_ns: u64) -> Option<u16> {
        let entry = self.0.get(&(mac, vlan))?;
        (now_ns - entry.1 <= AGE_NS).then_some(entry.0)
    }
}

/// Runs the steps on both; whether the table may know less than the model.
fn compare(seed: u64, macs: u32, steps: &[Step], may_forget: bool) -> Result<(), TestCaseError> {
    let (mut table, mut model, mut now_ns) = (Table::new(seed), Model::default(), 0);
    for step in steps {
        match *step {
            Step::Learn(number, vlan, port) => table.learn(mac(number), vlan, port, now_ns),
            Step::Forget(port) => table.forget_port(port),
            Step::Wait(ns) => now_ns += ns,
        }
        model.step(step, now_ns);
        if let Step::Learn(number, vlan, port) = *step {
            prop_assert_eq!(table.find(mac(number), vlan, now_ns), Some(port));
        }
    }
    for (number, vlan) in (0..macs).flat_map(|it| [(it, 0), (it, 1), (it, 2)]) {
        let found = table.find(mac(number), vlan, now_ns);
        let expected = model.find(number, vlan, now_ns);
        prop_assert!(found == expected || may_forget && found.is_none());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// As few keys as one bucket holds: nothing gives way, whatever the seed.
    #[test]
    fn few_addresses_are_known_as_without_bounds(seed: u64, steps in steps(2)) {
        compare(seed, 2, &steps, false)?;
    }

    #[test]
    fn what_is_found_is_never_wrong(seed: u64, steps in steps(3000)) {
        compare(seed, 3000, &steps, true)?;
    }
}
