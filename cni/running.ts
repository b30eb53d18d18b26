import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../agent/lib/clock.ts";
import { ignoreErrno } from "../agent/lib/errno.ts";
import { AgentError, messageOf } from "../agent/lib/errors.ts";
import type { Logger } from "../agent/lib/log.ts";
import { namesIn } from "../agent/lib/names-in.ts";
import { parseObject } from "./json.ts";

/** A plugin's process, which leads a session and a process group of its own. */
export interface PluginProcess {
  pid: number;
  /** The kernel's ticks from boot to its start: with the ID, this tells it from a later process. */
  startTicks: string;
  /** The boot that both belong to. */
  bootID: string;
}

interface ProcessStat {
  isDead: boolean;
  session: number;
  startTicks: string;
}

// A process that got SIGKILL is gone within milliseconds; one that the kernel makes wait goes when that ends.
export const endWaitMs = 5_000;
const endPollMs = 10;

/**
 * Which plugin works on a container, on disk: a plugin outlives an agent that dies, and the next one must not run DEL beside its ADD.
 * One file for each container, as operations on a container follow each other.
 */
export class RunningPlugins {
  readonly #dir: string;
  readonly #clock: Clock;
  readonly #log: Logger;

  constructor({ cacheDir, clock, log }: { cacheDir: string; clock: Clock; log: Logger }) {
    this.#dir = join(cacheDir, "running");
    this.#clock = clock;
    this.#log = log;
  }

  /** Notes a plugin that has not got its input yet. Never rejects: a full disk must not keep pods from ending. */
  async note(containerID: string, pid: number): Promise<void> {
    try {
      const stat = await statOf(pid);
      if (stat === undefined) return;
      const noted: PluginProcess = { pid, startTicks: stat.startTicks, bootID: await readBootID() };
      await mkdir(this.#dir, { recursive: true, mode: 0o700 });
      // Not forced to the disk: after a crash of the machine there is no process.
      await writeFile(join(this.#dir, containerID), JSON.stringify(noted), { mode: 0o600 });
    } catch (err) {
      this.#log.warn({ containerID, pid, err: messageOf(err) }, "cannot note that a CNI plugin runs");
    }
  }

  /** To be called when the plugin has ended by itself. Never rejects. */
  async forget(containerID: string): Promise<void> {
    await rm(join(this.#dir, containerID), { force: true }).catch((err: unknown) => {
      this.#log.debug({ containerID, err: messageOf(err) }, "cannot forget that a CNI plugin ran");
    });
  }

  /**
   * Ends what still works on a container on behalf of an operation that nobody waits for any more, with all it started.
   * Rejects with Unavailable if it does not end.
   */
  async endLeftover(containerID: string, signal?: AbortSignal): Promise<void> {
    const text = await readFile(join(this.#dir, containerID), "utf8").catch(ignoreErrno("ENOENT", "ENOTDIR"));
    if (text === undefined) return;
    const noted = parseProcess(text);
    if (noted !== undefined && noted.bootID === (await readBootID())) await this.#end(containerID, noted, signal);
    await this.forget(containerID);
  }

  async #end(containerID: string, { pid, startTicks }: PluginProcess, signal?: AbortSignal): Promise<void> {
    const leader = await statOf(pid);
    if (leader !== undefined && leader.startTicks !== startTicks) return; // the ID is another's by now
    // While one of the session is there its ID is not given to a new process.
    if (!(await isSessionAlive(pid))) return;
    this.#log.warn({ containerID, pid }, "ending a CNI plugin that an earlier operation left running");
    const endAtMs = this.#clock.monotonic() + endWaitMs;
    while (this.#clock.monotonic() < endAtMs) {
      try {
        process.kill(-pid, "SIGKILL");
      } catch {
        // It has gone just now, or the next look says otherwise.
      }
      if (!(await isSessionAlive(pid))) return;
      await this.#clock.sleep(endPollMs, signal);
    }
    throw new AgentError(
      "Unavailable",
      `container ${containerID}: process ${pid} of an earlier CNI plugin still works on its network and cannot be ended`,
    );
  }
}

function parseProcess(text: string): PluginProcess | undefined {
  const { pid, startTicks, bootID } = parseObject(text) ?? {};
  if (typeof pid !== "number" || !Number.isInteger(pid) || pid <= 1) return undefined;
  return typeof startTicks === "string" && typeof bootID === "string" ? { pid, startTicks, bootID } : undefined;
}

async function readBootID(): Promise<string> {
  return (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
}

/** `undefined` if there is no such process. */
async function statOf(pid: number | string): Promise<ProcessStat | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(ignoreErrno("ENOENT", "ESRCH"));
  if (text === undefined) return undefined;
  // PID (COMMAND) STATE PPID PGRP SESSION …: a command may hold anything, also a bracket.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const [state = ""] = fields;
  return { isDead: state === "Z" || state === "X", session: Number(fields[3]), startTicks: fields[19] ?? "" };
}

async function isSessionAlive(session: number): Promise<boolean> {
  for (const name of await namesIn("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const stat = await statOf(name);
    if (stat?.session === session && !stat.isDead) return true;
  }
  return false;
}
