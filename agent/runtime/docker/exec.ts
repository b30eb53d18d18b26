import { readFile } from "node:fs/promises";
import type { Duplex } from "node:stream";
import type Docker from "dockerode";
import type { Clock } from "../../lib/clock.ts";
import { AgentError } from "../../lib/errors.ts";
import type { DockerClient } from "./client.ts";
import { readToEnd } from "./hijacked.ts";

// A command that is told to end gets this long until it is killed: Docker's own patience.
export const termGraceMs = 10_000;

// How long `close` waits for commands that were told to end, and once more for those that were killed: a part of the time
// that the agent takes for its own end.
export const closeGraceMs = 2_000;

// Between two looks at a command that is being started, or that closed its outputs and goes on: from a few ms, as the
// daemon is done with it in so many, up to once a second.
const lookMsMin = 5;
const lookMsMax = 1_000;

/**
 * Keys that make Docker leave a session. There is no way to have none, and its own (Ctrl-P Ctrl-Q) hold back every
 * Ctrl-P until the next key. Nobody types these, and a shell has little use for the first.
 */
export const detachKeys = "ctrl-@,ctrl-^,ctrl-@,ctrl-^,ctrl-@,ctrl-^";

export interface ExecCommand {
  readonly containerID: string;
  readonly command: readonly string[];
  readonly tty: boolean;
  readonly stdin: boolean;
}

/** How a command ended: with an exit code, or not even started, and why. */
export type ExecOutcome = { kind: "exited"; exitCode: number } | { kind: "failed"; message: string };

/** What the daemon knows of a command. */
interface ExecState {
  readonly running: boolean;
  readonly exitCode: number | undefined;
  /** On the host; undefined until it runs. */
  readonly pid: number | undefined;
}

/**
 * A command in a container, from its start on. The connection carries its input and its output (`outputParser`); both
 * outputs are always there, as the connection's end is that of the outputs.
 */
export class DockerExec {
  /** To be destroyed by whoever uses it. Its end says nothing of how the command ended. */
  readonly socket: Duplex;
  readonly #client: DockerClient;
  readonly #exec: Docker.Exec;
  readonly #containerID: string;
  readonly #clock: Clock;

  readonly #ended = Promise.withResolvers<void>();

  /** `socket` is what the start of `exec` answered. */
  constructor(client: DockerClient, exec: Docker.Exec, containerID: string, socket: Duplex, clock: Clock) {
    this.#client = client;
    this.#exec = exec;
    this.#containerID = containerID;
    this.socket = readToEnd(socket);
    this.#clock = clock;
  }

  /** Resolves when its end was seen, or `kill` is through. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** True once the command runs or has run; false if it could not be started: what it says is the daemon's error then. */
  async started(signal: AbortSignal): Promise<boolean> {
    const { pid } = await this.#until(({ running, pid: known }) => !running || known !== undefined, signal);
    return pid !== undefined;
  }

  /**
   * Waits for the end of the command, which may come after that of its outputs.
   *
   * @param said what it wrote so far: the reason, if it could not be started
   */
  async outcome(said: string, signal: AbortSignal): Promise<ExecOutcome> {
    const { pid, exitCode = 0 } = await this.#until(({ running }) => !running, signal);
    this.#ended.resolve();
    if (pid !== undefined) return { kind: "exited", exitCode };
    return { kind: "failed", message: said.trim() || `the container runtime could not start it (${exitCode})` };
  }

  async resize(width: number, height: number, signal: AbortSignal): Promise<void> {
    await this.#client.call(
      `terminal size of a command in container ${this.#containerID}`,
      async (abortSignal) => void (await this.#exec.resize({ w: width, h: height, abortSignal })),
      { signal },
    );
  }

  /**
   * Ends the command: at once, or with SIGTERM and {@link termGraceMs} before that. Docker has no call for it, so its
   * process is signalled, with those of its group. Never rejects: there is nobody to tell, and a daemon that does not
   * answer is asked anew by whoever comes next.
   */
  async kill(how: "SIGKILL" | "SIGTERM"): Promise<void> {
    this.socket.destroy();
    const patience = new AbortController();
    const timer = this.#clock.after(termGraceMs, () => patience.abort());
    try {
      const { running, pid } = await this.#until((state) => !state.running || state.pid !== undefined, patience.signal);
      if (!running || pid === undefined) return;
      await this.#signal(pid, how);
      if (how === "SIGKILL") return;
      const ended = await this.#until((state) => !state.running, patience.signal).catch(() => undefined);
      if (ended === undefined && (await this.#look()).running) await this.#signal(pid, "SIGKILL");
    } catch {
      // The container has ended, and with it the command, or the daemon is gone.
    } finally {
      timer.cancel();
      this.#ended.resolve();
    }
  }

  /** The process is one of the container still: its number may have gone to another one since the daemon told it. */
  async #signal(pid: number, signal: NodeJS.Signals): Promise<void> {
    const cgroups = await readFile(`/proc/${pid}/cgroup`, "utf8");
    if (!cgroups.includes(this.#containerID)) return;
    try {
      process.kill(-pid, signal); // it leads a session of its own
    } catch {
      process.kill(pid, signal);
    }
  }

  async #until(isIt: (state: ExecState) => boolean, signal: AbortSignal): Promise<ExecState> {
    for (let restMs = lookMsMin; ; restMs = Math.min(2 * restMs, lookMsMax)) {
      const state = await this.#look(signal);
      if (isIt(state)) return state;
      await this.#clock.sleep(restMs, signal);
    }
  }

  async #look(signal?: AbortSignal): Promise<ExecState> {
    const what = `state of a command in container ${this.#containerID}`;
    const { Running, ExitCode, Pid } = await this.#client.call(
      what,
      async (abortSignal) => await this.#exec.inspect({ abortSignal }),
      signal === undefined ? {} : { signal },
    );
    return { running: Running, exitCode: ExitCode ?? undefined, pid: Pid > 0 ? Pid : undefined };
  }
}

/** Commands in containers. None outlives the agent's orderly end: nobody would know of it. */
export class DockerExecs {
  readonly #client: DockerClient;
  readonly #clock: Clock;
  readonly #closing = new AbortController();
  readonly #running = new Set<DockerExec>();
  /** What `close` waits for: commands that are being started, and those that have not ended. None rejects. */
  readonly #underWay = new Set<Promise<void>>();

  constructor(client: DockerClient, clock: Clock) {
    this.#client = client;
    this.#clock = clock;
  }

  /** Aborts when the agent ends. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** Rejects with AgentError if the container does not run or is not there, Canceled when `signal` aborts. */
  async start(command: ExecCommand, signal: AbortSignal): Promise<DockerExec> {
    const what = `exec in container ${command.containerID}`;
    const stop = AbortSignal.any([signal, this.#closing.signal]);
    if (stop.aborted) throw new AgentError("Canceled", `${what}: canceled`);
    const starting = this.#begin(what, command);
    this.#keep(starting);
    return await unlessAborted(starting, stop, what, (started) => void started.kill("SIGKILL"));
  }

  /**
   * Ends all commands: those that are waited for at once, those of sessions when they had {@link closeGraceMs} to end by
   * themselves. Resolves when they have ended, or the time for that is over. Never rejects.
   */
  async close(): Promise<void> {
    this.#closing.abort();
    await this.#rest();
    for (const exec of this.#running) void exec.kill("SIGKILL");
    await this.#rest();
  }

  /**
   * No signal ends this in the middle. A start that is broken off may still come to pass at the daemon; and of commands that
   * were never started Docker keeps record until their container ends. Whoever has lost interest ends what was started.
   */
  async #begin(what: string, { containerID, command, tty, stdin }: ExecCommand): Promise<DockerExec> {
    const { docker } = this.#client;
    const create = {
      ...{ AttachStdin: stdin, AttachStdout: true, AttachStderr: true, Tty: tty, DetachKeys: detachKeys },
      Cmd: [...command],
    };
    const exec = await this.#client.call(
      what,
      async (abortSignal) => await docker.getContainer(containerID).exec({ ...create, abortSignal }),
    );
    if (this.#closing.signal.aborted) throw new AgentError("Canceled", `${what}: canceled`);
    const socket = await this.#client.call(
      what,
      async (abortSignal) => await exec.start({ hijack: true, Detach: false, Tty: tty, abortSignal }),
    );
    const started = new DockerExec(this.#client, exec, containerID, socket, this.#clock);
    this.#running.add(started);
    this.#keep(started.ended.then(() => this.#running.delete(started)));
    return started;
  }

  #keep(work: Promise<unknown>): void {
    const kept = work.then(
      () => void this.#underWay.delete(kept),
      () => void this.#underWay.delete(kept),
    );
    this.#underWay.add(kept);
  }

  /** Until nothing is under way, or {@link closeGraceMs} are over. */
  async #rest(): Promise<void> {
    const over = new AbortController();
    const sleep = this.#clock.sleep(closeGraceMs, over.signal).catch(() => over.abort());
    const ended = async () => {
      while (this.#underWay.size > 0 && !over.signal.aborted) await Promise.all(this.#underWay);
    };
    await Promise.race([sleep, ended()]);
    over.abort();
  }
}

/** The outcome of `work`, unless `signal` aborts before: then it rejects with Canceled, and `tooLate` gets what comes of it. */
async function unlessAborted<T>(
  work: Promise<T>,
  signal: AbortSignal,
  what: string,
  tooLate: (result: T) => void,
): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = () => {
    reject(new AgentError("Canceled", `${what}: canceled`));
    work.then(tooLate, () => {});
  };
  signal.addEventListener("abort", onAbort);
  if (signal.aborted) onAbort();
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
