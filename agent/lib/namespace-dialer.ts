import { type ChildProcess, spawn } from "node:child_process";
import { Socket } from "node:net";
import { isSea } from "node:sea";
import { AgentError } from "./errors.ts";
import { dialerRole, parseDialAnswer } from "./namespace-dialer-role.ts";

// Of what a child complains about before it ends: nsenter says one line.
const complaintBytesMax = 4 << 10;

/** Dials from inside another network namespace. */
export interface NamespaceDialer {
  /**
   * Connects to a port of the namespace's loopback, by IPv4 and then by IPv6. The socket is the caller's, half-open
   * allowed, nothing read from it yet.
   *
   * Rejects with Unavailable if nobody listens or the namespace is gone, Canceled when `signal` aborts.
   */
  dial(port: number, signal: AbortSignal): Promise<Socket>;
  /** Ends the helper; connections that it made go on. Idempotent. */
  close(): void;
}

/**
 * Makes a dialer for a network namespace: this program again, entered through nsenter, that hands each connection over
 * when it is made and sees none of its bytes. It starts with the first connection and ends with `close`, or with the agent.
 * (A process cannot enter a namespace by itself here: that is for single threads, and Node.js has several.)
 *
 * @param netnsPath such as /proc/PID/ns/net
 */
export function createNamespaceDialer(netnsPath: string): NamespaceDialer {
  let helper: Helper | undefined;
  let isClosed = false;
  return {
    dial: async (port, signal) => {
      if (isClosed) throw new AgentError("Canceled", "the dialer is closed");
      if (helper === undefined || helper.hasEnded) helper = new Helper(netnsPath);
      return await helper.dial(port, signal);
    },
    close: () => {
      isClosed = true;
      helper?.end();
    },
  };
}

class Helper {
  hasEnded = false;
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, (outcome: Socket | AgentError) => void>();
  #nextID = 1;
  #complaint = "";

  constructor(netnsPath: string) {
    // In a release this executable, else the role's own module, which is quicker to load than all of the agent.
    const script = `import(${JSON.stringify(new URL("./namespace-dialer-role.ts", import.meta.url).href)}).then((m) => m.serveDials())`;
    const args = isSea() ? [dialerRole] : ["--input-type=module", "--eval", script];
    this.#child = spawn("nsenter", [`--net=${netnsPath}`, "--", process.execPath, ...args], {
      stdio: ["ignore", "ignore", "pipe", "ipc"],
      detached: true, // an interrupt at the agent's terminal is the agent's alone
    });
    this.#child.stderr?.on("data", (chunk: Buffer) => {
      this.#complaint = (this.#complaint + chunk.toString()).slice(0, complaintBytesMax);
    });
    this.#child.on("message", (message: unknown, handle: unknown) => this.#onAnswer(message, handle));
    this.#child.on("error", (err) => this.#onEnd(err.message));
    this.#child.on("close", () => this.#onEnd(this.#complaint.trim().split("\n", 1)[0] ?? ""));
    this.#child.on("disconnect", () => this.#child.kill("SIGKILL"));
    this.#child.unref();
    this.#child.channel?.unref();
  }

  async dial(port: number, signal: AbortSignal): Promise<Socket> {
    const id = this.#nextID;
    this.#nextID += 1;
    const { promise, resolve } = Promise.withResolvers<Socket | AgentError>();
    this.#waiting.set(id, resolve);
    const onAbort = () => {
      this.#waiting.delete(id); // what is connected all the same is closed when it comes
      resolve(new AgentError("Canceled", `dial port ${port}: canceled`));
    };
    signal.addEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
    // A helper that cannot be asked has ended, or is ended: its "close" tells everybody, and why.
    this.#child.send({ id, port }, () => {});
    const outcome = await promise;
    signal.removeEventListener("abort", onAbort);
    if (outcome instanceof AgentError) throw outcome;
    return outcome;
  }

  end(): void {
    this.hasEnded = true;
    if (this.#child.connected) this.#child.disconnect();
  }

  #onAnswer(message: unknown, handle: unknown): void {
    const { id, error } = parseDialAnswer(message);
    const socket = handle instanceof Socket ? handle : undefined;
    const resolve = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (resolve === undefined) {
      socket?.destroy();
      return;
    }
    if (socket === undefined) {
      resolve(new AgentError("Unavailable", error ?? "the connection was lost on its way"));
      return;
    }
    socket.allowHalfOpen = true;
    socket.pause();
    resolve(socket);
  }

  #onEnd(why: string): void {
    this.hasEnded = true;
    const err = new AgentError(
      "Unavailable",
      `the helper in the network namespace ended${why === "" ? "" : `: ${why}`}`,
    );
    for (const resolve of this.#waiting.values()) resolve(err);
    this.#waiting.clear();
  }
}
