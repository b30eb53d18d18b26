import type { FakeIptables } from "./fake-iptables.ts";

export interface Packet {
  src: string;
  dst: string;
  proto: "tcp" | "udp" | "sctp";
  dport: number;
  /** Interface it comes in by; absent if it was made on this machine. */
  iface?: string;
}

export interface TraceOptions {
  /** Members by set, as ipset lists them: `ip,proto:port`, `net,proto:port`, `ip,proto:port,ip`, or `ip` and `net`. */
  sets?: Record<string, Set<string>>;
  /** This machine's addresses. */
  localIPs?: readonly string[];
  /** Decides `statistic --mode random`: true takes the rule. Default: never, so the last endpoint is chosen. */
  random?: (probability: number) => boolean;
  /** Lists of `-m recent` that know the source. */
  recent?: ReadonlySet<string>;
}

export interface TraceResult {
  /** What became of it. */
  verdict: "ACCEPT" | "DROP" | "REJECT";
  /** `ip:port` it was sent on to. */
  dnat: string | undefined;
  /** It leaves with one of this machine's addresses as its source. */
  isMasqueraded: boolean;
  /** Rules looked at in the nat table before the endpoint was chosen or the packet let go, and in the filter table. */
  visited: { nat: number; filter: number };
  /** nat chains entered, in order. */
  path: string[];
}

interface State {
  packet: Packet;
  /** Before it was translated. */
  readonly origDst: string;
  mark: boolean;
  dnat: string | undefined;
  visited: number;
  path: string[];
}

type Verdict = "ACCEPT" | "DROP" | "REJECT" | "DNAT" | "MASQUERADE" | "RETURN";

/** Follows the first packet of a connection through the tables, as the kernel would. Understands our own rules only. */
export function tracePacket(tables: FakeIptables["tables"], packet: Packet, options: TraceOptions = {}): TraceResult {
  const state: State = {
    packet: { ...packet },
    origDst: packet.dst,
    mark: false,
    dnat: undefined,
    visited: 0,
    path: [],
  };
  const isLocalIP = (ip: string) => ip.startsWith("127.") || ip === "::1" || (options.localIPs?.includes(ip) ?? false);
  const run = (table: string, chain: string) => walk(tables, table, chain, state, options, isLocalIP) ?? "ACCEPT";

  run("nat", packet.iface === undefined ? "OUTPUT" : "PREROUTING");
  const nat = state.visited;
  const isToNode = isLocalIP(state.packet.dst);
  state.visited = 0;
  const hook = packet.iface === undefined ? "OUTPUT" : isToNode ? "INPUT" : "FORWARD";
  const natPath = [...state.path];
  const verdict = run("filter", hook);
  const filter = state.visited;
  const isMasqueraded = verdict === "ACCEPT" && run("nat", "POSTROUTING") === "MASQUERADE";
  if (verdict !== "ACCEPT" && verdict !== "DROP" && verdict !== "REJECT") throw new Error(`filter says ${verdict}`);
  return { verdict, dnat: state.dnat, isMasqueraded, visited: { nat, filter }, path: natPath };
}

function walk(
  tables: FakeIptables["tables"],
  table: string,
  chain: string,
  state: State,
  options: TraceOptions,
  isLocalIP: (ip: string) => boolean,
): Verdict | undefined {
  state.path.push(chain);
  for (const rule of tables.get(table)?.get(chain) ?? []) {
    state.visited += 1;
    const args = splitArguments(rule);
    const target = matches(args, state, options, isLocalIP);
    if (target === undefined) continue;
    switch (target.name) {
      case "ACCEPT":
      case "DROP":
      case "REJECT":
      case "MASQUERADE":
        return target.name;
      case "RETURN":
        return undefined;
      case "DNAT": {
        const to = args[args.indexOf("--to-destination") + 1] ?? "";
        state.dnat = to;
        const colon = to.lastIndexOf(":");
        state.packet = {
          ...state.packet,
          dst: to.slice(0, colon).replace(/[[\]]/g, ""),
          dport: Number(to.slice(colon + 1)),
        };
        return "DNAT";
      }
      case "SET":
        options.sets?.[args[args.indexOf("--add-set") + 1] ?? ""]?.add(state.packet.src);
        break;
      case "MARK":
        state.mark = args.includes("--or-mark");
        break;
      case "":
        break;
      default: {
        const verdict = walk(tables, table, target.name, state, options, isLocalIP);
        if (verdict !== undefined || target.isGoto) return verdict;
      }
    }
  }
  return undefined;
}

/** The rule's target if the packet matches. */
function matches(args: readonly string[], state: State, options: TraceOptions, isLocalIP: (ip: string) => boolean) {
  const { packet } = state;
  let not = false;
  let setName: string | undefined;
  let recentName = "";
  let target = { name: "", isGoto: false };
  for (let i = 0; i < args.length; i++) {
    const value = args[i + 1] ?? "";
    let isMatch = true;
    switch (args[i]) {
      case "!":
        not = true;
        continue;
      case "-j":
      case "-g":
        target = { name: value, isGoto: args[i] === "-g" };
        break;
      case "-d":
        isMatch = inRange(packet.dst, value);
        break;
      case "-s":
        isMatch = inRange(packet.src, value);
        break;
      case "-i":
        isMatch = value.endsWith("+") ? (packet.iface ?? "").startsWith(value.slice(0, -1)) : packet.iface === value;
        break;
      case "-p":
        isMatch = packet.proto === value;
        break;
      case "--dport": {
        const [first, last = first] = value.split(":");
        isMatch = packet.dport >= Number(first) && packet.dport <= Number(last);
        break;
      }
      case "--dst-type":
        isMatch = isLocalIP(packet.dst);
        break;
      case "--src-type":
        isMatch = isLocalIP(packet.src);
        break;
      case "--mark":
        isMatch = state.mark;
        break;
      case "--ctstate":
        // A first packet; NAT decided just now shows as DNAT.
        isMatch = value.split(",").some((one) => one === "NEW" || (one === "DNAT" && state.dnat !== undefined));
        break;
      case "--ctorigdst":
        isMatch = inRange(state.origDst, value);
        break;
      case "--match-set":
        setName = value;
        if (options.sets?.[value] === undefined) throw new Error(`no set ${setName}`);
        isMatch = isMember(options.sets[value], args[i + 2] ?? "", packet);
        i += 1; // "dst,dst" or "src"
        break;
      case "--probability":
        isMatch = options.random?.(Number(value)) ?? false;
        break;
      case "--name":
        recentName = value;
        break;
      case "--rcheck":
        isMatch = options.recent?.has(recentName) ?? false;
        i -= 1; // takes no value
        break;
      case "--add-set":
        i += 1; // and "src"
        break;
      case "--exist":
      case "--set":
      case "--reap":
      case "--random-fully":
        i -= 1;
        break;
      case "-m":
      case "--comment":
      case "--mode":
      case "--seconds":
      case "--timeout":
      case "--or-mark":
      case "--xor-mark":
      case "--to-destination":
        break;
      default:
        throw new Error(`the tracer does not know ${args[i]}`);
    }
    i += 1;
    if (isMatch === not) return undefined;
    not = false;
  }
  return target;
}

function isMember(members: ReadonlySet<string>, directions: string, packet: Packet): boolean {
  const port = `${packet.proto}:${packet.dport}`;
  if (directions === "src") {
    return members.has(packet.src) || [...members].some((one) => one.includes("/") && inRange(packet.src, one));
  }
  if (directions === "dst,dst,src") return members.has(`${packet.dst},${port},${packet.src}`);
  const halves = packet.dst.includes(":") ? ["::/1", "8000::/1"] : ["0.0.0.0/1", "128.0.0.0/1"];
  const half = halves.find((one) => inRange(packet.dst, one)) ?? "";
  return members.has(`${packet.dst},${port}`) || members.has(`${half},${port}`);
}

function inRange(ip: string, range: string): boolean {
  const [base = "", length] = range.split("/");
  const bits = toBits(base);
  return toBits(ip).startsWith(length === undefined ? bits : bits.slice(0, Number(length)));
}

function toBits(ip: string): string {
  if (!ip.includes(":")) {
    const octets = ip.split(".").map((part) => Number(part).toString(2).padStart(8, "0"));
    return octets.join("");
  }
  const [head = "", tail] = ip.split("::");
  const words = (text: string) => (text === "" ? [] : text.split(":"));
  const before = words(head);
  const after = tail === undefined ? [] : words(tail);
  const zeros = tail === undefined ? 0 : 8 - before.length - after.length;
  const all = [...before, ...Array.from({ length: zeros }, () => "0"), ...after];
  return all.map((word) => Number.parseInt(word, 16).toString(2).padStart(16, "0")).join("");
}

function splitArguments(rule: string): string[] {
  return [...rule.matchAll(/"([^"]*)"|(\S+)/g)].map((found) => found[1] ?? found[2] ?? "");
}
