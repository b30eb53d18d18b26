import { addressBits, type Family, formatIP, parseCIDR, parseIP } from "../ip.ts";
import { type Counter, type Field, oneOf, type Rule, type Step, type Value, type Verdict } from "./ruleset.ts";

const tokenRE = /"((?:[^"\\]|\\.)*)"|(\S+)/g;
// Targets that end nothing and change nothing that another rule looks at.
const harmlessTargets = new Set([
  "LOG",
  "NFLOG",
  "ULOG",
  "TRACE",
  "CHECKSUM",
  "TCPMSS",
  "TTL",
  "HL",
  "DSCP",
  "TOS",
  "CLASSIFY",
  "CT",
  "NOTRACK",
  "AUDIT",
  "SECMARK",
  "CONNSECMARK",
  "SET",
]);
const protocolNumbers: Readonly<Record<string, string>> = {
  1: "icmp",
  6: "tcp",
  17: "udp",
  58: "ipv6-icmp",
  132: "sctp",
};
const setFields: Readonly<Record<string, readonly Field["kind"][]>> = {
  src: ["saddr", "sport"],
  dst: ["daddr", "dport"],
};
const allBits = 0xffffffff;

/** A line of iptables-save, `-A CHAIN …`, with its counter in front if there is one. */
export interface SavedRule {
  readonly text: string;
  readonly counter: Counter | undefined;
}

/**
 * Reads one rule as iptables-save lists it. What it does not understand becomes a step of kind "unknown". Pure.
 *
 * @param setKinds types of ipsets by name, `hash:ip,port`
 */
export function parseIptablesRule(saved: SavedRule, family: Family, setKinds: ReadonlyMap<string, string>): Rule {
  const tokens = [...saved.text.matchAll(tokenRE)].map(([, quoted, plain]) => quoted ?? plain ?? "");
  const parser = new RuleParser(tokens, family, setKinds);
  const { steps, comment } = parser.parse();
  return { text: saved.text, comment, counter: saved.counter, steps };
}

/** One option with its arguments, which reach up to the next option. */
interface Option {
  readonly name: string;
  readonly args: readonly string[];
  readonly isNegated: boolean;
}

class RuleParser {
  readonly #options: readonly Option[];
  readonly #family: Family;
  readonly #setKinds: ReadonlyMap<string, string>;
  readonly #steps: Step[] = [];
  #comment: string | undefined;
  #module = "";
  #recent: { list: string; looks: boolean; isNegated: boolean } | undefined;

  constructor(tokens: readonly string[], family: Family, setKinds: ReadonlyMap<string, string>) {
    this.#options = splitOptions(tokens);
    this.#family = family;
    this.#setKinds = setKinds;
  }

  parse(): { steps: Step[]; comment: string | undefined } {
    const at = this.#options.findIndex(({ name }) => name === "-j" || name === "-g");
    const conditions = at < 0 ? this.#options : this.#options.slice(0, at);
    for (const option of conditions) this.#condition(option);
    const { looks = false, list = "", isNegated = false } = this.#recent ?? {};
    if (looks) this.#steps.push({ kind: "recent", list, isNegated });
    const [target, ...rest] = at < 0 ? [] : this.#options.slice(at);
    if (target !== undefined) this.#steps.push(...this.#target(target, rest));
    return { steps: this.#steps, comment: this.#comment };
  }

  #match(kind: Exclude<Field["kind"], "mark" | "random">, isNegated: boolean, ...values: Value[]): void {
    this.#steps.push({ kind: "match", fields: [{ kind }], among: oneOf(...values), isNegated });
  }

  #condition(option: Option): void {
    const { name, args, isNegated } = option;
    const [first = ""] = args;
    switch (name) {
      case "-s":
      case "-d": {
        const value = addressValue(first, this.#family);
        if (value === undefined) this.#unknown(option);
        else this.#match(name === "-s" ? "saddr" : "daddr", isNegated, value);
        return;
      }
      case "-i":
      case "-o":
        return this.#match(name === "-i" ? "iif" : "oif", isNegated, interfaceValue(first));
      case "-p":
        if (first === "all") return;
        return this.#match("protocol", isNegated, protocolNumbers[first] ?? first);
      case "--sport":
      case "--dport":
      case "--sports":
      case "--dports":
        return this.#match(name.startsWith("--s") ? "sport" : "dport", isNegated, ...first.split(",").map(portValue));
      case "--ctstate":
      case "--state":
        return this.#match("ctstate", isNegated, ...first.toLowerCase().split(","));
      case "--src-type":
      case "--dst-type":
        if (first !== "LOCAL") return this.#unknown(option);
        return this.#match(name === "--src-type" ? "saddrType" : "daddrType", isNegated, "local");
      case "--mark": {
        if (this.#module !== "mark") return this.#unknown(option);
        const { value, mask } = markValue(first);
        this.#steps.push({ kind: "match", fields: [{ kind: "mark", mask }], among: oneOf(value), isNegated });
        return;
      }
      case "--tcp-flags": {
        // The first packet of a connection has SYN, and no other flag.
        const isSynLooked = first === "ALL" || first.split(",").includes("SYN");
        const isMatch = args[1] === (isSynLooked ? "SYN" : "NONE");
        if (isMatch === isNegated) this.#steps.push(never);
        return;
      }
      case "--src-range":
      case "--dst-range": {
        const [from = "", to = from] = first.split("-");
        return this.#match(name === "--src-range" ? "saddr" : "daddr", isNegated, { first: from, last: to });
      }
      case "--match-set":
        return this.#matchSet(option);
      case "--mode":
        if (first !== "random" && first !== "nth") this.#unknown(option);
        return;
      case "--probability":
        this.#steps.push({ kind: "chance", probability: isNegated ? 1 - Number(first) : Number(first) });
        return;
      case "--every":
        this.#steps.push({ kind: "chance", probability: isNegated ? 1 - 1 / Number(first) : 1 / Number(first) });
        return;
      case "--comment":
        this.#comment = first;
        return;
      case "--name":
        this.#recent = { looks: false, isNegated: false, ...this.#recent, list: first };
        return;
      case "--rcheck":
      case "--update":
        this.#recent = { list: "DEFAULT", ...this.#recent, looks: true, isNegated };
        return;
      case "--hitcount":
        return this.#unknown(option);
      case "-m":
        this.#module = first;
        return;
      case "--set":
      case "--remove":
      case "--seconds":
      case "--reap":
      case "--rsource":
      case "--mask":
      case "--packet":
      case "--nfacct-name":
        return; // says nothing more, or changes nothing that decides where this packet goes
      default:
        this.#unknown(option);
    }
  }

  #matchSet(option: Option): void {
    const [name = "", directions = ""] = option.args;
    const kinds = /^(?:hash|bitmap):(\S+)$/.exec(this.#setKinds.get(name) ?? "")?.[1]?.split(",");
    const fields: Field[] = [];
    for (const [at, kind] of (kinds ?? []).entries()) {
      const [address, port] = setFields[directions.split(",")[at] ?? ""] ?? [];
      const isKnown = address !== undefined && port !== undefined && ["ip", "net", "port"].includes(kind);
      if (!isKnown) return this.#unknown(option);
      // A port of a set with addresses stands beside its protocol; see parseIpsets.
      const named = (one: Field["kind"]) => fields.push({ kind: one } as Field);
      if (kind !== "port") named(address);
      else {
        if ((kinds ?? []).length > 1) named("protocol");
        named(port);
      }
    }
    if (fields.length === 0) return this.#unknown(option);
    this.#steps.push({ kind: "match", fields, among: { set: name }, isNegated: option.isNegated });
  }

  #unknown({ name, args, isNegated }: Option): void {
    this.#steps.push({ kind: "unknown", text: [isNegated ? "!" : "", name, ...args].filter(Boolean).join(" ") });
  }

  #target({ name, args }: Option, rest: readonly Option[]): Step[] {
    const [target = ""] = args;
    const valueOf = (...names: string[]) => rest.find((option) => names.includes(option.name))?.args[0];
    const verdict = (of: Verdict): Step[] => [{ kind: "verdict", verdict: of }];
    if (name === "-g") return verdict({ kind: "goto", chain: target });
    switch (target) {
      case "ACCEPT":
        return verdict({ kind: "accept" });
      case "DROP":
        return verdict({ kind: "drop" });
      case "RETURN":
        return verdict({ kind: "return" });
      case "REJECT":
        return verdict({ kind: "reject", with: valueOf("--reject-with") ?? "icmp-port-unreachable" });
      case "MASQUERADE":
        return verdict({ kind: "snat", to: "" });
      case "SNAT":
        return verdict({ kind: "snat", to: valueOf("--to-source") ?? "" });
      case "REDIRECT":
        return verdict({ kind: "redirect", port: Number(valueOf("--to-ports")) || undefined });
      case "DNAT": {
        const found = destination(valueOf("--to-destination") ?? "");
        if (found !== undefined) return verdict({ kind: "dnat", ...found });
        break;
      }
      case "MARK": {
        const step = markStep(rest);
        if (step !== undefined) return [step];
        break;
      }
      default:
        if (harmlessTargets.has(target)) return [];
        // Targets of extensions are upper case, and so are many chains; whether there is one of the name is seen on the walk.
        return verdict({ kind: "jump", chain: target });
    }
    return [{ kind: "unknown", text: `-j ${target}` }];
  }
}

const never: Step = { kind: "match", fields: [{ kind: "protocol" }], among: oneOf(), isNegated: false };

function splitOptions(tokens: readonly string[]): Option[] {
  const options: { name: string; args: string[]; isNegated: boolean }[] = [];
  let isNegated = false;
  for (const [at, token] of tokens.entries()) {
    // A comment may look like anything.
    const before = tokens[at - 1];
    if (before === "--comment") options.at(-1)?.args.push(token);
    else if (token === "!") isNegated = true;
    else if (/^--?[a-zA-Z]/.test(token)) {
      options.push({ name: token, args: [], isNegated });
      isNegated = false;
    } else options.at(-1)?.args.push(token);
  }
  return options;
}

/** undefined: no address of the family */
function addressValue(text: string, family: Family): Value | undefined {
  const prefix = text.includes("/") ? parseCIDR(text) : parseIP(text);
  if (prefix?.family !== family) return undefined;
  return prefix.bits.length === addressBits[family] ? formatIP(prefix) : prefix;
}

/** iptables writes `veth+` for all names that begin so. */
function interfaceValue(text: string): Value {
  return text.endsWith("+") ? { startsWith: text.slice(0, -1) } : text;
}

function portValue(text: string): Value {
  const [first = 0, last = first] = text.split(":").map(Number);
  return first === last ? first : { first, last };
}

function markValue(text: string): { value: number; mask: number } {
  const [value = 0, mask = allBits] = text.split("/").map(Number);
  return { value, mask };
}

function markStep(options: readonly Option[]): Step | undefined {
  for (const { name, args } of options) {
    const { value, mask } = markValue(args[0] ?? "");
    switch (name) {
      case "--set-xmark":
        return { kind: "mark", keep: ~mask >>> 0, flip: value };
      case "--set-mark":
        return { kind: "mark", keep: ~(mask | value) >>> 0, flip: value };
      case "--or-mark":
        return { kind: "mark", keep: ~value >>> 0, flip: value };
      case "--and-mark":
        return { kind: "mark", keep: value, flip: 0 };
      case "--xor-mark":
        return { kind: "mark", keep: allBits, flip: value };
      default:
    }
  }
  return undefined;
}

/** `10.0.0.1:80`, `[fd00::1]:80`, `10.0.0.1`; undefined for ranges. */
function destination(text: string): { address: string; port: number | undefined } | undefined {
  const found = /^\[(.+)\](?::(\d+))?$/.exec(text) ?? /^([^:]+):(\d+)$/.exec(text) ?? /^(.+)$/.exec(text);
  const address = parseIP(found?.[1] ?? "");
  if (address === undefined) return undefined;
  return { address: formatIP(address), port: found?.[2] === undefined ? undefined : Number(found[2]) };
}
