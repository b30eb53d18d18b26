import { readdir, readFile, readlink } from "node:fs/promises";
import type { Clock } from "../lib/clock.ts";
import type { Logger } from "../lib/log.ts";

/** Another program that programs services on this machine. */
export interface RivalProcess {
  readonly pid: number;
  readonly name: string;
}

// As /proc/PID/comm has it, in a container, too.
const rivalName = "kube-proxy";
// Somebody who flushes the tables by hand does so once or twice; a program does it again and again.
const repairsOfRival = 5;
const repairWindowMs = 600_000;

/**
 * Processes in this process's network namespace that are service proxies, too. What ends or is hidden meanwhile is not among them.
 */
export async function findRivals(procDir = "/proc"): Promise<RivalProcess[]> {
  const own = await readlink(`${procDir}/self/ns/net`);
  const found: RivalProcess[] = [];
  for (const entry of await readdir(procDir)) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    try {
      const name = (await readFile(`${procDir}/${entry}/comm`, "utf8")).trim();
      if (name === rivalName && (await readlink(`${procDir}/${entry}/ns/net`)) === own) found.push({ pid, name });
    } catch {
      // It ended.
    }
  }
  return found;
}

interface RivalWatchDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly find: () => Promise<RivalProcess[]>;
  /** Hears once, in one sentence. Must not throw. */
  readonly onRival: (message: string) => void;
}

/** Tells, once, that somebody else programs services on this machine. */
export class RivalWatch {
  readonly #deps: RivalWatchDeps;
  #repairsAtMs: number[] = [];
  #hasTold = false;

  constructor(deps: RivalWatchDeps) {
    this.#deps = deps;
  }

  /** Looks at the processes; `damage` is what was found to be changed in the rules, if that is why. Never rejects. */
  async check(damage?: string): Promise<void> {
    if (this.#hasTold) return;
    const { clock, find } = this.#deps;
    const nowMs = clock.monotonic();
    if (damage !== undefined) {
      this.#repairsAtMs = [...this.#repairsAtMs.filter((at) => nowMs - at < repairWindowMs), nowMs];
    }
    const [rival] = await find().catch(() => []);
    if (rival !== undefined) {
      this.#tell(`${rival.name} (process ${rival.pid}) programs services on this node, too: stop one of the two`);
    } else if (this.#repairsAtMs.length >= repairsOfRival) {
      this.#tell(
        `rules of services were changed by somebody else ${this.#repairsAtMs.length} times within ten minutes (${damage}): is there another kube-proxy?`,
      );
    }
  }

  #tell(message: string): void {
    if (this.#hasTold) return; // two families may have asked at once
    this.#hasTold = true;
    this.#deps.log.warn({ problem: message }, "another service proxy is at work");
    this.#deps.onRival(message);
  }
}
