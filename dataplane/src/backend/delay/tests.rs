use super::*;

#[test]
fn requests_leave_in_their_order_when_their_time_has_come() {
    let mut line = DelayLine::default();
    assert_eq!((line.next_due_ns(), line.take_due(u64::MAX)), (None, None));
    line.hold(10, 1);
    line.hold(10, 2);
    line.hold(20, 3);
    assert_eq!(line.next_due_ns(), Some(10));
    assert_eq!(line.take_due(9), None);
    assert_eq!(line.take_due(10), Some(1));
    assert_eq!(line.take_due(15), Some(2));
    assert_eq!(line.take_due(15), None);
    assert_eq!(line.next_due_ns(), Some(20));
    assert_eq!(line.take_due(30), Some(3));
    assert_eq!(line.take_due(u64::MAX), None);
}

#[test]
fn the_first_due_leaves_first_whenever_it_came() {
    let mut line = DelayLine::default();
    for (due_ns, id) in [(30, 1), (10, 2), (20, 3), (10, 4), (40, 5)] {
        line.hold(due_ns, id);
    }
    let left: Vec<u32> = std::iter::from_fn(|| line.take_due(30)).collect();
    assert_eq!(left, [2, 4, 3, 1]);
    assert_eq!(line.next_due_ns(), Some(40));
}
