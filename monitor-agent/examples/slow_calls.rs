//! Prints the calls of running processes that take longer than a millisecond: `slow_calls PID…`, as root.

use std::{env, error::Error, time::Duration};

use monitor_agent::{FinishedCall, Lost, Tracer};

struct SlowCalls {
    seen: u64,
}

impl Tracer for SlowCalls {
    fn finish(&mut self, call: &FinishedCall<'_>) {
        self.seen += 1;
        let Some(duration) = call.duration.filter(|duration| *duration > Duration::from_millis(1)) else {
            return;
        };
        println!("{} {} {} {duration:?}", call.target, call.labels.method, call.labels.status());
    }

    fn lost(&mut self, lost: &Lost) {
        println!("{} lost {}: {}", lost.target, lost.count, lost.reason.name());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let pids = env::args().skip(1).map(|pid| pid.parse()).collect::<Result<Vec<u32>, _>>()?;
    let mut calls = SlowCalls { seen: 0 };
    monitor_agent::watch(&pids, &mut calls)?;
    println!("{} calls seen", calls.seen);
    Ok(())
}
