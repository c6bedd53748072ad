//! Model of the bell: whatever a worker did not find when it looked, it is rung for.

use super::bell::Bell;
use loom::sync::{Arc, Mutex};
use loom::thread;

#[test]
fn loom_bell_no_work_is_left_to_a_worker_that_would_sleep() {
    loom::model(|| {
        let shared = Arc::new((Bell::new(), Mutex::new(0)));
        let ringers: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let (bell, work) = &*shared;
                    *work.lock().expect("no panic") += 1;
                    bell.ring();
                })
            })
            .collect();
        let (bell, work) = &*shared;
        // The worker looks once, at any moment between the ringers' steps.
        bell.hear();
        let found = std::mem::take(&mut *work.lock().expect("no panic"));
        ringers.into_iter().for_each(|ringer| ringer.join().expect("no panic"));
        assert!(found == 2 || bell.is_rung(), "the worker sleeps beside work");
    });
}
