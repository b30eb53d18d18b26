import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import { join } from "node:path";
import { systemClock, type Clock } from "../agent/lib/clock.ts";
import type { ErrorCode } from "../agent/lib/errors.ts";
import { exec } from "../agent/lib/exec.ts";
import type { Logger } from "../agent/lib/log.ts";
import { isObject, type JSONObject } from "./json.ts";
import { type CNITarget, type Command, pluginEnv } from "./request.ts";

/** How long a plugin may take before it is killed, in ms. */
export interface PluginTimeouts {
  /** ADD, DEL, CHECK and GC. */
  verbMs: number;
  /** STATUS of all plugins together. */
  statusMs: number;
  versionMs: number;
}

export const pluginTimeouts: PluginTimeouts = {
  // Some plugins wait for their daemon, which is a pod of this node. The kubelet's default for a call that sets up a pod's network.
  verbMs: 120_000,
  // Below the 10 s that the agent waits for a runtime's status.
  statusMs: 5_000,
  // It answers from memory.
  versionMs: 5_000,
};

// A result is some KiB; a plugin that prints more than this does not stop at all.
export const stdoutBytesMax = 1 << 20;
// What a plugin says goes into events and log lines.
const wordsMax = 500;
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

export interface PluginRun {
  command: Command;
  plugin: FoundPlugin;
  input: JSONObject;
  target?: CNITarget;
  timeoutMs: number;
  signal?: AbortSignal | undefined;
}

export interface PluginsOptions {
  /** Searched in this order. */
  readonly binDirs: readonly string[];
  readonly log: Logger;
  readonly timeouts?: PluginTimeouts;
  readonly clock?: Clock;
}

const verbWords: Readonly<Record<Command, string>> = {
  ADD: "add",
  DEL: "delete",
  CHECK: "check",
  GC: "gc",
  STATUS: "status",
  VERSION: "version",
};

/** Finds and runs plugins. Keeps what their files answered to VERSION. */
export class Plugins {
  readonly timeouts: PluginTimeouts;
  readonly #binDirs: readonly string[];
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #versions = new Map<string, { identity: string; answer: Promise<readonly string[] | undefined> }>();

  constructor({ binDirs, log, timeouts = pluginTimeouts, clock = systemClock }: PluginsOptions) {
    this.#binDirs = binDirs;
    this.#log = log;
    this.timeouts = timeouts;
    this.#clock = clock;
  }

  /** The first executable of this name; or, in words, why there is none. */
  async find(type: string): Promise<FoundPlugin | { problem: string }> {
    let problem = `failed to find plugin "${type}" in path [${this.#binDirs.join(" ")}]`;
    for (const dir of this.#binDirs) {
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

  /** The versions that a plugin speaks; `undefined` if it gives no usable answer. Asked once for each state of its file. */
  async versionsOf(plugin: FoundPlugin): Promise<readonly string[] | undefined> {
    const known = this.#versions.get(plugin.path);
    if (known?.identity === plugin.identity) return known.answer;
    const answer = this.#askVersions(plugin);
    this.#versions.set(plugin.path, { identity: plugin.identity, answer });
    return answer;
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
    const { command, plugin, input, target, timeoutMs, signal } = run;
    const stop = new AbortController();
    const chunks: Buffer[] = [];
    let bytes = 0;
    const result = await exec(plugin.path, [], {
      stdin: JSON.stringify(input),
      timeoutMs,
      signal: signal === undefined ? stop.signal : AbortSignal.any([signal, stop.signal]),
      // It finds iptables and its like by the agent's PATH.
      env: { ...process.env, ...pluginEnv(command, this.#binDirs, target) },
      onStdout: (chunk) => {
        bytes += chunk.length;
        if (bytes > stdoutBytesMax) stop.abort();
        else chunks.push(chunk);
      },
    });
    const stdout = Buffer.concat(chunks).toString("utf8");
    const isTooMuch = bytes > stdoutBytesMax;
    if (result.failure === undefined && !isTooMuch) return { outcome: { ok: true, stdout }, isBusy: false };
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
    if (result.failure === "timeout") return fail("DeadlineExceeded", oneLine(result.message));
    if (result.failure === "canceled") return fail("Canceled", oneLine(result.message));
    const said = parseErrorObject(stdout);
    if (said !== undefined) return fail(laterCodes.has(said.code) ? "Unavailable" : "Internal", said.words, said.code);
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
      timeoutMs: this.timeouts.versionMs,
    });
    if (outcome.ok) {
      const versions = parseVersions(outcome.stdout);
      if (versions !== undefined) return versions;
    } else if (outcome.message.includes("unknown CNI_COMMAND: VERSION")) {
      return ["0.1.0"]; // the first version had no such command
    }
    const why = outcome.ok ? "its answer cannot be read" : outcome.message;
    this.#log.warn({ plugin: plugin.path, err: why }, "a CNI plugin does not tell its versions, using it all the same");
    return undefined;
  }
}

function parseVersions(stdout: string): string[] | undefined {
  const answer = parseObject(stdout);
  const listed = answer?.["supportedVersions"];
  if (Array.isArray(listed)) return listed.filter((version): version is string => typeof version === "string");
  // 0.1.0 again: it answers with nothing but its version.
  return typeof answer?.["cniVersion"] === "string" ? [answer["cniVersion"]] : undefined;
}

/** A plugin's error object: its code, and the rest in words. */
function parseErrorObject(stdout: string): { code: number; words: string } | undefined {
  const object = parseObject(stdout);
  if (object === undefined) return undefined;
  const { code, msg, details } = object;
  if (typeof msg !== "string" || msg === "") return undefined;
  const number = typeof code === "number" ? code : 0;
  const more = typeof details === "string" && details !== "" ? `; ${oneLine(details)}` : "";
  return { code: number, words: `${oneLine(msg)}${more}${number === 0 ? "" : ` (error code ${number})`}` };
}

function parseObject(text: string): JSONObject | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** What a plugin said, made printable, one line, and short. */
export function oneLine(text: string): string {
  const line = text.replaceAll(/[\p{Cc}\s\u{FFFD}]+/gu, " ").trim();
  return line.length <= wordsMax ? line : `${line.slice(0, wordsMax)}…`;
}
