import type { FakeNft } from "./fake-nft.ts";
import { contains, parseCIDR, parseIP } from "../../agent/proxy/ip.ts";
import type { Packet, TraceResult } from "./packet-tracer.ts";

export interface NftTraceOptions {
  /** This machine's addresses. */
  localIPs?: readonly string[];
  /** Decides `numgen random`: a number below `count`. Default: the last one. */
  random?: (count: number) => number;
}

type Verdict = "ACCEPT" | "DROP" | "REJECT" | "DNAT" | "MASQUERADE";

interface State {
  packet: Packet;
  mark: number;
  dnat: string | undefined;
  visited: number;
  path: string[];
}

/**
 * Follows the first packet of a connection through a table, as the kernel would: chains by hook and priority, verdict maps,
 * concatenations. Understands our own rules only.
 */
export function traceNft(nft: FakeNft, packet: Packet, options: NftTraceOptions = {}): TraceResult {
  const state: State = { packet: { ...packet }, mark: 0, dnat: undefined, visited: 0, path: [] };
  const tracer = new Tracer(nft, state, options);
  const isMadeHere = packet.iface === undefined;
  let verdict = tracer.hook(isMadeHere ? "output" : "prerouting");
  const nat = state.visited;
  state.visited = 0;
  const isToNode = tracer.isLocal(state.packet.dst);
  if (verdict === "ACCEPT" && (isToNode || !isMadeHere)) verdict = tracer.hook(isToNode ? "input" : "forward");
  const filter = state.visited;
  const path = [...state.path];
  const isMasqueraded =
    verdict === "ACCEPT" && !(isToNode && !isMadeHere) && tracer.hook("postrouting", true) === "MASQUERADE";
  return { verdict, dnat: state.dnat, isMasqueraded, visited: { nat, filter }, path };
}

class Tracer {
  readonly #nft: FakeNft;
  readonly #state: State;
  readonly #options: NftTraceOptions;

  constructor(nft: FakeNft, state: State, options: NftTraceOptions) {
    this.#nft = nft;
    this.#state = state;
    this.#options = options;
  }

  isLocal(ip: string): boolean {
    return ip.startsWith("127.") || ip === "::1" || (this.#options.localIPs?.includes(ip) ?? false);
  }

  /** All base chains of a hook in the order of their priorities; dropped or refused by one is so for all. */
  hook(name: string, tellsNat: true): Verdict;
  hook(name: string): "ACCEPT" | "DROP" | "REJECT";
  hook(name: string, tellsNat = false): Verdict {
    let nat: Verdict = "ACCEPT";
    const chains = [...this.#nft.hooks].filter(([, { hook }]) => hook === name);
    for (const [chain] of chains.sort(([, a], [, b]) => a.priority - b.priority)) {
      const verdict = this.#walk(chain);
      if (verdict === "DROP" || verdict === "REJECT") return verdict;
      if (verdict !== undefined) nat = verdict;
    }
    return tellsNat ? nat : "ACCEPT";
  }

  /** @returns undefined: went through to its end */
  #walk(chain: string): Verdict | undefined {
    const rules = this.#nft.chains?.get(chain);
    if (rules === undefined) throw new Error(`no chain ${chain}`);
    this.#state.path.push(chain);
    for (const rule of rules) {
      this.#state.visited += 1;
      const { verdict, isGoto } = this.#rule(new Words(rule));
      if (verdict !== undefined || isGoto) return verdict;
    }
    return undefined;
  }

  #verdict(words: Words): { verdict: Verdict | undefined; isGoto: boolean } {
    const word = words.next();
    if (word === "jump" || word === "goto") return { verdict: this.#walk(words.next()), isGoto: word === "goto" };
    if (word === "drop") return { verdict: "DROP", isGoto: true };
    if (word === "reject") return { verdict: "REJECT", isGoto: true };
    throw new Error(`the tracer does not know the verdict ${word}`);
  }

  #rule(words: Words): { verdict: Verdict | undefined; isGoto: boolean } {
    const state = this.#state;
    const none = { verdict: undefined, isGoto: false };
    while (!words.isAtEnd) {
      if (words.takes("masquerade fully-random")) return { verdict: "MASQUERADE", isGoto: true };
      if (words.takes("meta mark set meta mark or")) state.mark |= Number(words.next());
      else if (words.takes("meta mark set meta mark xor")) state.mark ^= Number(words.next());
      else if (words.takes("meta mark and")) {
        const mask = Number(words.next());
        words.expect("!= 0");
        if ((state.mark & mask) === 0) return none;
      } else if (words.takes("update")) {
        const set = this.#nft.sets.get(words.next().slice(1));
        words.expect("{");
        set?.elements.set(this.#value(words), "");
        words.expect("}");
      } else if (words.takes("dnat ip addr . port to") || words.takes("dnat ip6 addr . port to")) {
        const found = this.#lookUp(words, this.#value(words), "map");
        if (found === undefined) return none;
        return this.#dnat(found);
      } else if (words.takes("dnat to")) {
        const [, ip = "", port = ""] = /^\[?(.*?)\]?:(\d+)$/.exec(words.next()) ?? [];
        return this.#dnat(`${ip} . ${port}`);
      } else if (["jump", "goto", "drop", "reject"].includes(words.peek)) return this.#verdict(words);
      else {
        const value = this.#value(words);
        if (words.peek === "vmap") {
          const found = this.#lookUp(words, value, "vmap");
          return found === undefined ? none : this.#verdict(new Words(found));
        }
        if (!this.#matches(value, words)) return none;
      }
    }
    return none;
  }

  #dnat(target: string): { verdict: Verdict; isGoto: boolean } {
    const [dst = "", port = ""] = target.split(" . ");
    this.#state.packet = { ...this.#state.packet, dst, dport: Number(port) };
    this.#state.dnat = dst.includes(":") ? `[${dst}]:${port}` : `${dst}:${port}`;
    return { verdict: "DNAT", isGoto: true };
  }

  /** The packet's fields that are asked about, as elements of sets have them. */
  #value(words: Words): string {
    const parts: string[] = [];
    do parts.push(this.#field(words));
    while (words.takes("."));
    return parts.join(" . ");
  }

  #field(words: Words): string {
    const { packet, dnat } = this.#state;
    if (words.takes("ip daddr") || words.takes("ip6 daddr")) return packet.dst;
    if (words.takes("ip saddr") || words.takes("ip6 saddr")) return packet.src;
    if (words.takes("meta l4proto")) return packet.proto;
    if (words.takes("th dport")) return String(packet.dport);
    if (words.takes("iifname")) return packet.iface ?? "";
    if (words.takes("fib daddr type")) return this.isLocal(packet.dst) ? "local" : "unicast";
    if (words.takes("fib saddr type")) return this.isLocal(packet.src) ? "local" : "unicast";
    if (words.takes("ct state")) return "new";
    if (words.takes("ct status")) return dnat === undefined ? "" : "dnat";
    if (words.takes("numgen random mod")) {
      const count = Number(words.next());
      return String(this.#options.random?.(count) ?? count - 1);
    }
    throw new Error(`the tracer does not know the field ${words.peek}`);
  }

  #matches(value: string, words: Words): boolean {
    const isNegated = words.takes("!=");
    const word = words.next();
    if (word.startsWith("@")) return this.#set(word).has(value) !== isNegated;
    const wanted = word === "{" ? words.untilBrace() : [word];
    return wanted.some((one) => isSame(value, one)) !== isNegated;
  }

  #lookUp(words: Words, value: string, keyword: "map" | "vmap"): string | undefined {
    words.expect(keyword);
    const word = words.next();
    if (word.startsWith("@")) return this.#set(word).get(value);
    const entries = words.untilBrace().map((entry): [string, string] => {
      const [key = "", target = ""] = entry.split(" : ");
      return [key, target];
    });
    return new Map(entries).get(value);
  }

  #set(name: string): ReadonlyMap<string, string> {
    const set = this.#nft.sets.get(name.slice(1));
    if (set === undefined) throw new Error(`no set ${name}`);
    return set.elements;
  }
}

function isSame(value: string, wanted: string): boolean {
  if (wanted.startsWith('"')) {
    const name = wanted.slice(1, -1);
    return name.endsWith("*") ? value.startsWith(name.slice(0, -1)) : value === name;
  }
  return value === wanted || (wanted.includes("/") && isInRange(value, wanted));
}

function isInRange(ip: string, range: string): boolean {
  const [address, prefix] = [parseIP(ip), parseCIDR(range)];
  return address !== undefined && prefix !== undefined && contains(prefix, address);
}

/** The words of a rule, one after the other. */
class Words {
  readonly #words: readonly string[];
  #at = 0;

  constructor(text: string) {
    this.#words = text.split(" ");
  }

  get isAtEnd(): boolean {
    return this.#at >= this.#words.length;
  }

  get peek(): string {
    return this.#words[this.#at] ?? "";
  }

  next(): string {
    return this.#words[this.#at++] ?? "";
  }

  /** Skips `phrase` if it comes next. */
  takes(phrase: string): boolean {
    const wanted = phrase.split(" ");
    if (!wanted.every((word, n) => this.#words[this.#at + n] === word)) return false;
    this.#at += wanted.length;
    return true;
  }

  expect(phrase: string): void {
    if (!this.takes(phrase)) throw new Error(`${phrase} expected in: ${this.#words.join(" ")}`);
  }

  /** What stands in braces, which are open, by comma. */
  untilBrace(): string[] {
    const end = this.#words.indexOf("}", this.#at);
    const inside = this.#words.slice(this.#at, end).join(" ");
    this.#at = end + 1;
    return inside.split(", ");
  }
}
