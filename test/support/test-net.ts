import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readdir } from "node:fs/promises";
import { createCommands, type Commands } from "../../agent/proxy/commands.ts";
import type { Sysctls } from "../../agent/proxy/sysctl.ts";
import { exec } from "../../agent/lib/exec.ts";
import { processKey } from "./node/process-key.ts";
import type { PeerRequest } from "./net-peer.ts";

const timeoutMs = 20_000;
const namespacesDir = "/run/netns";
const namespacePrefix = "nlp-";
// Behind the prefix: PID and start time of the process that made it.
const ownedRE = /^nlp-(\d+)-(\d+)-/;
const peerScript = new URL("net-peer.ts", import.meta.url).pathname;

type DistributiveOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

/** A process in one of the namespaces that serves and connects on command. */
class Peer {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, { resolve: (text: string) => void; reject: (err: Error) => void }>();
  #nextID = 0;

  constructor(child: ChildProcess) {
    this.#child = child;
    child.on("message", (answer: { id: number; text?: string; error?: string }) => {
      const waiting = this.#waiting.get(answer.id);
      this.#waiting.delete(answer.id);
      if (answer.error === undefined) waiting?.resolve(answer.text ?? "");
      else waiting?.reject(new Error(answer.error));
    });
    child.on("exit", () => {
      for (const { reject } of this.#waiting.values()) reject(new Error("the peer ended"));
    });
  }

  static async start(namespace: string): Promise<Peer> {
    const child = spawn("nsenter", [`--net=/run/netns/${namespace}`, process.execPath, peerScript], {
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    const peer = new Peer(child);
    await peer.#answer(peer.#nextID++);
    return peer;
  }

  async request(request: DistributiveOmit<PeerRequest, "id">): Promise<string> {
    const id = this.#nextID++;
    const answer = this.#answer(id);
    this.#child.send({ ...request, id });
    return answer;
  }

  /** Asks a server; the error's message is the error code (`ECONNREFUSED`, `ETIMEDOUT`). */
  async ask(proto: "tcp" | "udp", host: string, port: number, waitMs = 5_000, from?: string): Promise<string> {
    const source = from === undefined ? {} : { from };
    return this.request({ op: "ask", proto, host, port, timeoutMs: waitMs, ...source });
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.kill("SIGKILL");
    await exited;
  }

  #answer(id: number): Promise<string> {
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }
}

/**
 * A machine with two pods and a client outside, as network namespaces:
 *
 *     client 192.0.2.2 ── 192.0.2.1 node 10.244.1.1 ── 10.244.1.2 pod1
 *            203.0.113.50                10.244.2.1 ── 10.244.2.2 pod2
 *                                        198.18.0.1 ── 198.18.0.2 node2, with 10.244.3.2 pod3
 *
 * The same in IPv6: 2001:db8::2 (and 2001:db8:50::50), 2001:db8::1, fd00:244:1::2, fd00:244:2::2, 2001:db8:1::2, fd00:244:3::2.
 * The client knows the way to 10.96.0.0/16 and the pods' networks through the node, and so does node2.
 */
export class TestNet {
  readonly prefix: string;
  readonly commands: Commands;
  readonly sysctls: Sysctls;
  readonly #peers: Peer[] = [];
  readonly #namespaces: string[] = [];
  node!: Peer;
  pod1!: Peer;
  pod2!: Peer;
  client!: Peer;
  /** The second node; `pod3` is an address of it. */
  node2!: Peer;
  readonly localIPs = [
    ...["127.0.0.1", "192.0.2.1", "10.244.1.1", "10.244.2.1", "198.18.0.1"],
    ...["::1", "2001:db8::1", "fd00:244:1::1", "fd00:244:2::1", "2001:db8:1::1"],
  ];

  private constructor(owner: string) {
    this.prefix = `${namespacePrefix}${owner.replace(" ", "-")}-${randomBytes(2).toString("hex")}`;
    this.commands = createCommands(["nsenter", `--net=/run/netns/${this.prefix}-node`]);
    this.sysctls = {
      read: async (path) => (await this.onNode("cat", [`/proc/sys/${path}`])).trim(),
      write: async (path, value) => {
        await this.onNode("tee", [`/proc/sys/${path}`], value);
      },
    };
  }

  /** Builds it; removes what was built if that fails. */
  static async create(): Promise<TestNet> {
    await sweepNamespaces();
    const net = new TestNet(await processKey(process.pid));
    try {
      await net.#build();
    } catch (err) {
      await net[Symbol.asyncDispose]();
      throw err;
    }
    return net;
  }

  async #build(): Promise<void> {
    for (const name of ["node", "pod1", "pod2", "client", "node2"]) {
      await run("ip", ["netns", "add", this.#ns(name)]);
      this.#namespaces.push(this.#ns(name));
      await this.#in(name, "ip", ["link", "set", "lo", "up"]);
      // IPv6 addresses are usable at once; otherwise the first packets would be lost to duplicate detection.
      for (const which of ["all", "default"]) {
        await this.#in(name, "tee", [`/proc/sys/net/ipv6/conf/${which}/accept_dad`], "0");
        // Redirects for hairpin traffic count against the limit of ICMP messages to the same pod, and a refusal is one.
        await this.#in(name, "tee", [`/proc/sys/net/ipv4/conf/${which}/send_redirects`], "0");
      }
    }
    for (const key of ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]) await this.sysctls.write(key, "1");
    // A refusal is an ICMP message, of which one host gets so many a second only.
    for (const key of ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"]) await this.sysctls.write(key, "0");
    await this.#link("pod1", "10.244.1", 24, "fd00:244:1:");
    await this.#link("pod2", "10.244.2", 24, "fd00:244:2:");
    await this.#link("client", "192.0.2", 24, "2001:db8:");
    await this.#link("node2", "198.18.0", 24, "2001:db8:1:");
    for (const [where, ipv4, ipv6] of [
      ["client", "203.0.113.50/32", "2001:db8:50::50/128"],
      ["node2", "10.244.3.2/32", "fd00:244:3::2/128"],
    ] as const) {
      await this.#in(where, "ip", ["addr", "add", ipv4, "dev", "lo"]);
      await this.#in(where, "ip", ["-6", "addr", "add", ipv6, "dev", "lo", "nodad"]);
    }
    await this.#in("node", "ip", ["route", "add", "10.244.3.0/24", "via", "198.18.0.2"]);
    await this.#in("node", "ip", ["-6", "route", "add", "fd00:244:3::/64", "via", "2001:db8:1::2"]);
    // Packets need a way before they get a translation: service addresses are on no network.
    await this.#in("node", "ip", ["route", "add", "default", "via", "192.0.2.2"]);
    await this.#in("node", "ip", ["-6", "route", "add", "default", "via", "2001:db8::2"]);
    this.node = await this.#peer("node");
    this.pod1 = await this.#peer("pod1");
    this.pod2 = await this.#peer("pod2");
    this.client = await this.#peer("client");
    this.node2 = await this.#peer("node2");
    for (const [peer, name] of [
      [this.pod1, "pod1"],
      [this.pod2, "pod2"],
      [this.node2, "pod3"],
    ] as const) {
      const n = name.slice(-1);
      await peer.request({ op: "serve", name, host: `10.244.${n}.2`, port: 8080 });
      await peer.request({ op: "serve", name, host: `fd00:244:${n}::2`, port: 8080 });
    }
  }

  /** Runs a command in the node's namespace and returns its output. */
  async onNode(file: string, args: readonly string[], stdin?: string): Promise<string> {
    return this.#in("node", file, args, stdin);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const peer of this.#peers) await peer.stop();
    for (const namespace of this.#namespaces) await run("ip", ["netns", "del", namespace]);
  }

  async #link(name: string, net4: string, length: number, net6: string): Promise<void> {
    const inside = ["link", "add", `veth-${name}`, "type", "veth", "peer", "name", "eth0", "netns", this.#ns(name)];
    await this.#in("node", "ip", inside);
    const address = async (where: string, device: string, host: number) => {
      await this.#in(where, "ip", ["addr", "add", `${net4}.${host}/${length}`, "dev", device]);
      await this.#in(where, "ip", ["-6", "addr", "add", `${net6}:${host}/64`, "dev", device, "nodad"]);
      await this.#in(where, "ip", ["link", "set", device, "up"]);
    };
    await address("node", `veth-${name}`, 1);
    await address(name, "eth0", 2);
    await this.#in(name, "ip", ["route", "add", "default", "via", `${net4}.1`]);
    await this.#in(name, "ip", ["-6", "route", "add", "default", "via", `${net6}:1`]);
  }

  async #peer(name: string): Promise<Peer> {
    const peer = await Peer.start(this.#ns(name));
    this.#peers.push(peer);
    return peer;
  }

  async #in(name: string, file: string, args: readonly string[], stdin?: string): Promise<string> {
    return run("nsenter", [`--net=/run/netns/${this.#ns(name)}`, file, ...args], stdin);
  }

  #ns(name: string): string {
    return `${this.prefix}-${name}`;
  }
}

/** Removes the namespaces of processes that were killed before they could. */
async function sweepNamespaces(): Promise<void> {
  for (const name of await readdir(namespacesDir).catch(() => [])) {
    const [, pid, startTime] = ownedRE.exec(name) ?? [];
    if (pid === undefined || (await processKey(Number(pid))) === `${pid} ${startTime}`) continue;
    // Another process may be sweeping, too.
    await exec("ip", ["netns", "del", name], { timeoutMs });
  }
}

/** Calls `check` until it returns something other than undefined or false, or throws no more. */
export async function until<T>(what: string, check: () => Promise<T>, waitMs = 20_000): Promise<NonNullable<T>> {
  const endAt = performance.now() + waitMs;
  let last: unknown;
  while (performance.now() < endAt) {
    try {
      last = await check();
      if (last !== undefined && last !== null && last !== false) return last as NonNullable<T>;
    } catch (err) {
      last = err;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`not within ${waitMs} ms: ${what} (last: ${String(last)})`);
}

async function run(file: string, args: readonly string[], stdin?: string): Promise<string> {
  const result = await exec(file, args, { timeoutMs, ...(stdin === undefined ? {} : { stdin }) });
  if (result.failure !== undefined) throw new Error(`${args.join(" ")}: ${result.message}`);
  return result.stdout;
}
