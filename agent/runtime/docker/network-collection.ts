import { backoffMs } from "../../lib/backoff.ts";
import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { Loop } from "../../lib/loop.ts";
import type { SandboxNetwork } from "./network.ts";

export interface NetworkCollectionOptions {
  network: Pick<SandboxNetwork, "collect">;
  /** The sandboxes that the daemon has, those in the making too. */
  listSandboxIDs(): Promise<readonly string[]>;
  clock: Clock;
  log: Logger;
}

// A sandbox that was removed behind our back is asked for once more before its network goes: an ID is never used again, but
// events may come late. Several that go together are collected in one pass.
export const collectDelayMs = 1_000;
// For what no event told of. It costs a list and a look into a directory.
export const collectResyncMs = 10 * 60_000;
// A Docker daemon that starts again is back within seconds; a plugin whose own daemon is away may take longer.
export const collectRetry = { baseMs: 2_000, maxMs: collectResyncMs };

/** Frees what sandboxes that are no more have of networks: soon after one vanished, at start, and now and then. One pass at a time. */
export class NetworkCollection {
  readonly #loop: Loop;

  constructor({ network, listSandboxIDs, clock, log }: NetworkCollectionOptions) {
    this.#loop = new Loop({
      clock,
      pass: async (signal) => {
        await clock.sleep(collectDelayMs, signal);
        await network.collect(listSandboxIDs, signal);
        return undefined;
      },
      onError: (err) =>
        log.warn({ err: messageOf(err) }, "networks of removed sandboxes were not all taken down, trying again"),
      retryMs: (failures) => backoffMs(failures, collectRetry),
      resyncMs: collectResyncMs,
    });
  }

  /** Asks for a collection: a sandbox has vanished, or another network came into use. */
  wake(): void {
    this.#loop.wake();
  }

  async run(signal: AbortSignal): Promise<void> {
    await this.#loop.run(signal);
  }
}
