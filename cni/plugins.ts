import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import { join } from "node:path";
import { systemClock, type Clock } from "../agent/lib/clock.ts";
import type { ErrorCode } from "../agent/lib/errors.ts";
import { exec } from "../agent/lib/exec.ts";
import type { Logger } from "../agent/lib/log.ts";
import type { JSONObject } from "./json.ts";
import { oneLine, parseErrorObject, parseVersions } from "./plugin-words.ts";
import { type CNITarget, type Command, pluginEnv } from "./request.ts";
import type { RunningPlugins } from "./running.ts";

/** How long plugins may take before they are killed, in ms. */
export interface PluginTimeouts {
  /** ADD, DEL and CHECK: all plugins of the network together. */
  verbMs: number;
  /** GC of all plugins together. No pod can start or stop meanwhile. */
  gcMs: number;
  /** All that a status needs: VERSION and STATUS of all plugins together. */
  statusMs: number;
  /** VERSION of one plugin. */
  versionMs: number;
}

export const pluginTimeouts: PluginTimeouts = {
  // Some plugins wait for their daemon, which is a pod of this node. The kubelet's default for a call that sets up a pod's network.
  verbMs: 120_000,
  // It looks through what the node has, and the next collection does what this one did not come to.
  gcMs: 30_000,
  // Below the 10 s that the agent waits for a runtime's status, with room for a plugin that is slow to die.
  statusMs: 8_000,
  // It answers from memory.
  versionMs: 5_000,
};

// A result is some KiB; a plugin that prints more than this does not stop at all.
export const stdoutBytesMax = 1 << 20;
// A plugin that did not tell its versions is asked again after this long: it may have been the busy machine of a node that boots.
export const versionRetryMs = 10_000;
// A plugin's file cannot be started while an installer still writes it; libcni waits for it as long.
export const busyRetries = 5;
export const busyRetryMs = 1_000;

/** Codes of the specification that mean: not now. 11 try again later, 50 and 51 the plugin cannot serve ADD. */
const laterCodes = new Set([11, 50, 51]);

/** What came of running a plugin; that it fails is to be expected. */
export type PluginOutcome =
  | { ok: true; stdout: string }
  | { ok: false; code: ErrorCode; pluginCode: number | undefined; message: string };

/** A plugin's executable as it was found. */
export interface FoundPlugin {
  type: string;
  path: string;
  /** Another one once the file was replaced or changed. */
  identity: string;
}

/** Until when runs must have ended: see {@link Plugins.within}. */
export interface Deadline {
  readonly limitMs: number;
  /** By the clock's monotonic time. */
  readonly endAtMs: number;
}

export interface PluginRun {
  command: Command;
  plugin: FoundPlugin;
  input: JSONObject;
  target?: CNITarget;
  /** When it is killed. */
  deadline: Deadline;
  signal?: AbortSignal | undefined;
}

export interface PluginsOptions {
  /** Searched in this order. */
  readonly binDirs: readonly string[];
  readonly log: Logger;
  readonly timeouts?: PluginTimeouts;
  readonly clock?: Clock;
  /** Notes which plugin works on which container. */
  readonly running?: RunningPlugins;
  /** Kills whatever runs. */
  readonly signal?: AbortSignal;
}

const verbWords: Readonly<Record<Command, string>> = {
  ADD: "add",
  DEL: "delete",
  CHECK: "check",
  GC: "gc",
  STATUS: "status",
  VERSION: "version",
};

/** What a plugin's file said, until when that holds. */
interface KnownVersions {
  identity: string;
  answer: Promise<readonly string[] | undefined>;
  untilMs: number;
}

/** Finds and runs plugins. Keeps what their files answered to VERSION. */
export class Plugins {
  readonly timeouts: PluginTimeouts;
  readonly #options: PluginsOptions;
  readonly #clock: Clock;
  readonly #versions = new Map<string, KnownVersions>();

  constructor(options: PluginsOptions) {
    const { timeouts = pluginTimeouts, clock = systemClock } = options;
    this.timeouts = timeouts;
    this.#options = options;
    this.#clock = clock;
  }

  /** The deadline of runs that have this long together. */
  within(limitMs: number): Deadline {
    return { limitMs, endAtMs: this.#clock.monotonic() + limitMs };
  }

  /** The first executable of this name; or, in words, why there is none. */
  async find(type: string): Promise<FoundPlugin | { problem: string }> {
    let problem = `failed to find plugin "${type}" in path [${this.#options.binDirs.join(" ")}]`;
    for (const dir of this.#options.binDirs) {
      const path = join(dir, type);
      const stats = await stat(path, { bigint: true }).catch(() => undefined);
      if (stats?.isFile() !== true) continue;
      const isExecutable = await access(path, constants.X_OK).then(
        () => true,
        () => false,
      );
      if (isExecutable) {
        const { dev, ino, size, mtimeNs, ctimeNs } = stats;
        return { type, path, identity: [dev, ino, size, mtimeNs, ctimeNs].join("/") };
      }
      problem = `plugin "${type}" cannot be run: ${path} is not executable`;
    }
    return { problem };
  }

  /**
   * The versions that a plugin speaks; `undefined` if it gives no usable answer. An answer holds for as long as its file stays the
   * same, that there is none for {@link versionRetryMs}.
   */
  async versionsOf(plugin: FoundPlugin): Promise<readonly string[] | undefined> {
    const known = this.#versions.get(plugin.path);
    if (known?.identity === plugin.identity && this.#clock.monotonic() < known.untilMs) return await known.answer;
    const entry = { identity: plugin.identity, answer: this.#askVersions(plugin), untilMs: Number.POSITIVE_INFINITY };
    this.#versions.set(plugin.path, entry);
    const versions = await entry.answer;
    if (versions === undefined) entry.untilMs = this.#clock.monotonic() + versionRetryMs;
    return versions;
  }

  /** Runs a plugin to its end. Never rejects. When it is killed, what it started is killed with it. */
  async run(run: PluginRun): Promise<PluginOutcome> {
    for (let retries = 0; ; retries += 1) {
      const { outcome, isBusy } = await this.#runOnce(run);
      if (!isBusy || retries >= busyRetries) return outcome;
      await this.#clock.sleep(busyRetryMs, run.signal).catch(() => undefined); // the next run sees the abort too
    }
  }

  async #runOnce(run: PluginRun): Promise<{ outcome: PluginOutcome; isBusy: boolean }> {
    const { command, plugin, input, target, deadline } = run;
    const { binDirs, running, log } = this.#options;
    // VERSION and its like work on no container.
    const containerID = target?.containerID ?? "";
    const stop = new AbortController();
    const signals = [run.signal, this.#options.signal].filter((signal) => signal !== undefined);
    const chunks: Buffer[] = [];
    let bytes = 0;
    const result = await exec(plugin.path, [], {
      stdin: JSON.stringify(input),
      timeoutMs: Math.max(1, Math.round(deadline.endAtMs - this.#clock.monotonic())),
      signal: AbortSignal.any([...signals, stop.signal]),
      // It finds iptables and its like by the agent's PATH.
      env: { ...process.env, ...pluginEnv(command, binDirs, target) },
      ...(running === undefined || containerID === ""
        ? {}
        : { beforeStdin: async (pid: number) => await running.note(containerID, pid) }),
      onStdout: (chunk) => {
        bytes += chunk.length;
        if (bytes > stdoutBytesMax) stop.abort();
        else chunks.push(chunk);
      },
    });
    // One that had to be killed may still be there: whoever works on the container next looks.
    const hasEnded = result.failure !== "timeout" && result.failure !== "canceled";
    if (running !== undefined && containerID !== "" && hasEnded) await running.forget(containerID);
    const stdout = Buffer.concat(chunks).toString("utf8");
    const isTooMuch = bytes > stdoutBytesMax;
    if (result.failure === undefined && !isTooMuch) {
      const words = oneLine(result.stderr);
      if (words !== "") log.debug({ plugin: plugin.type, command, containerID, stderr: words }, "a CNI plugin says");
      return { outcome: { ok: true, stdout }, isBusy: false };
    }
    const isBusy = result.failure === "spawn" && result.message.includes("ETXTBSY");
    const fail = (code: ErrorCode, words: string, pluginCode?: number) => ({
      outcome: {
        ok: false as const,
        code,
        pluginCode,
        message: `plugin type="${plugin.type}" failed (${verbWords[command]}): ${words}`,
      },
      isBusy,
    });
    if (isTooMuch) return fail("Internal", `it printed more than ${stdoutBytesMax} bytes and was killed`);
    if (result.failure === "timeout") {
      const all = `; the plugins of an operation have ${deadline.limitMs} ms together`;
      return fail("DeadlineExceeded", oneLine(result.message) + all);
    }
    if (result.failure === "canceled") return fail("Canceled", oneLine(result.message));
    const error = parseErrorObject(stdout);
    if (error !== undefined) {
      return fail(laterCodes.has(error.code) ? "Unavailable" : "Internal", error.words, error.code);
    }
    const printed = oneLine(stdout);
    return fail(
      "Internal",
      printed === "" ? oneLine(result.message) : `${oneLine(result.message)}; it printed: ${printed}`,
    );
  }

  async #askVersions(plugin: FoundPlugin): Promise<readonly string[] | undefined> {
    const outcome = await this.run({
      command: "VERSION",
      plugin,
      input: { cniVersion: "1.1.0" },
      // Plugins made for the first versions want them before they look at the command.
      target: { containerID: "", netnsPath: "dummy", ifName: "dummy" },
      deadline: this.within(this.timeouts.versionMs),
    });
    if (outcome.ok) {
      const versions = parseVersions(outcome.stdout);
      if (versions !== undefined) return versions;
    } else if (outcome.message.includes("unknown CNI_COMMAND: VERSION")) {
      return ["0.1.0"]; // the first version had no such command
    }
    const why = outcome.ok ? "its answer cannot be read" : outcome.message;
    this.#options.log.warn(
      { plugin: plugin.path, err: why },
      "a CNI plugin does not tell its versions, using that of the configuration and asking again",
    );
    return undefined;
  }
}
