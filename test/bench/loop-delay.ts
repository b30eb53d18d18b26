/**
 * Preloaded into a process under measurement: on SIGUSR2 it writes what its event loop stalled since the last time, in ms, to
 * the file that LOOP_DELAY_FILE names.
 */
import { writeFileSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";

const file = process.env["LOOP_DELAY_FILE"];
if (file !== undefined) {
  const resolution = 5;
  const delay = monitorEventLoopDelay({ resolution });
  delay.enable();
  process.on("SIGUSR2", () => {
    // What the timer itself takes is no stall.
    const ms = (nanoseconds: number) => Math.max(0, nanoseconds / 1e6 - resolution);
    writeFileSync(file, JSON.stringify({ p99: ms(delay.percentile(99)), max: ms(delay.max) }));
    delay.reset();
  });
}
