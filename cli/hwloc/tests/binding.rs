//! CPU binding on this machine.

use daxtier_hwloc::Hwloc;

#[test]
fn a_thread_is_bound_where_it_asked_and_others_are_not() {
    let hwloc = Hwloc::load().unwrap();
    let before = hwloc.current_thread_cpus().unwrap();
    let target = *before.last().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            hwloc.bind_current_thread(&[target]).unwrap();
            assert_eq!(hwloc.current_thread_cpus(), Some(vec![target]));
        });
    });
    assert_eq!(hwloc.current_thread_cpus(), Some(before));
}
