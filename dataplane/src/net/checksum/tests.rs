use super::*;
use crate::net::sample::naive_sum;
use proptest::prelude::*;

#[test]
fn the_example_of_the_rfc() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(Sum::default().bytes(&bytes).folded(), 0xddf2);
    assert_eq!(Sum::default().bytes(&bytes).checksum(), !0xddf2);
}

proptest! {
    #[test]
    fn sums_are_those_of_the_naive_way(
        first in prop::collection::vec(any::<u8>(), 0..50),
        second in prop::collection::vec(any::<u8>(), 0..50),
        number: u16,
    ) {
        let even = &first[..first.len() & !1];
        let all = [even, &number.to_be_bytes(), &second].concat();
        let sum = Sum::default().bytes(even).number(number).bytes(&second);
        prop_assert_eq!(sum.folded(), naive_sum(&all));
        // 0 and 0xffff are the same number in ones' complement.
        let rest = [even, &second].concat();
        let same = |a: u16, b: u16| a % 0xffff == b % 0xffff;
        prop_assert!(same(sum.without(number).folded(), naive_sum(&rest)));
    }
}
