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
