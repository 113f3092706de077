//! How much memory and time an input may cost.

use std::time::Duration;

use cpu_time::ThreadTime;

use crate::MEMORY;

/// What reading may take of anything: buffers that are of one size, whatever the input.
const BYTES_ANYWAY: usize = 2 * 1024 * 1024;
/// Only what grows faster than its input takes so long. It is time of this thread on a processor, so how busy the machine is does not count.
const TIME_MAX: Duration = Duration::from_secs(2);

/// The state before an input is read.
pub(crate) struct Bounds {
    bytes: usize,
    time: ThreadTime,
}

impl Bounds {
    pub(crate) fn begin() -> Self {
        MEMORY.reset_peak_usage();
        Self { bytes: MEMORY.current_usage(), time: ThreadTime::now() }
    }

    pub(crate) fn end(self, length: usize, bytes_per_byte: usize) {
        let (peak, took) = (MEMORY.peak_usage().saturating_sub(self.bytes), self.time.elapsed());
        let most = BYTES_ANYWAY + length * bytes_per_byte;
        assert!(peak <= most, "an input of {length} bytes took {peak} bytes of memory, and no more than {most} are explained");
        assert!(took <= TIME_MAX, "an input of {length} bytes took {took:?}");
    }
}
