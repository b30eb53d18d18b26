import { contains, parseIP } from "../ip.ts";
import { Entries, type Field, type Members, type Step, type Table, type Value } from "./ruleset.ts";

/** The first packet of a new connection. */
export interface Packet {
  readonly saddr: string;
  readonly daddr: string;
  readonly protocol: "tcp" | "udp" | "sctp";
  readonly dport: number;
  /** By which it comes in; undefined: made on this machine. */
  readonly iif: string | undefined;
}

/** What the walk has to know of the machine, beside its rules. */
export interface Surroundings {
  /** True for the machine's own addresses, loopback included. */
  isLocal(address: string): boolean;
  /** The interface by which packets for the address leave; undefined: there is no route. */
  interfaceTo(address: string): string | undefined;
  /** Whether xt_recent's list has the address; undefined: not looked up yet. */
  recalls(list: string, address: string): boolean | undefined;
}

/** A packet on its way: what rules look at. */
export interface PacketState {
  readonly saddr: string;
  readonly daddr: string;
  readonly protocol: Packet["protocol"];
  readonly dport: number;
  readonly mark: number;
  readonly isDnat: boolean;
  readonly snat: string | undefined;
  readonly iif: string | undefined;
  readonly oif: string | undefined;
}

/** Whether a condition holds; undefined: its set could not be read. Pure. */
export function matches(
  { among, fields, isNegated }: Extract<Step, { kind: "match" }>,
  state: PacketState,
  table: Table,
  surroundings: Surroundings,
): boolean | undefined {
  const entries = entriesIn(among, table);
  if (entries === undefined) return undefined;
  const [field] = fields;
  const isOfConnection = fields.length === 1 && (field?.kind === "ctstate" || field?.kind === "ctstatus");
  const keys = isOfConnection
    ? connectionWords(field.kind, state).map((word) => [word])
    : keysOf(fields, state, surroundings).map(({ key }) => key);
  return keys.some((key) => entries.find(key, holds) !== undefined) !== isNegated;
}

/** The keys that fields come to, each with its chance: a random number has many. Pure. */
export function keysOf(
  fields: readonly Field[],
  state: PacketState,
  surroundings: Surroundings,
): { key: (string | number)[]; share: number }[] {
  let keys: { key: (string | number)[]; share: number }[] = [{ key: [], share: 1 }];
  for (const field of fields) {
    if (field.kind === "random") {
      const { below } = field;
      keys = keys.flatMap(({ key, share }) =>
        Array.from({ length: below }, (_, n) => ({ key: [...key, n], share: share / below })),
      );
    } else {
      const value = valueOf(field, state, surroundings);
      for (const { key } of keys) key.push(value);
    }
  }
  return keys;
}

function valueOf(
  field: Exclude<Field, { kind: "random" }>,
  state: PacketState,
  { isLocal }: Surroundings,
): string | number {
  switch (field.kind) {
    case "saddr":
    case "daddr":
    case "protocol":
    case "dport":
      return state[field.kind];
    case "sport":
      return 0; // one that no rule names: it is any free one
    case "iif":
    case "oif":
      return state[field.kind] ?? "";
    case "mark":
      return (state.mark & field.mask) >>> 0;
    case "saddrType":
      return isLocal(state.saddr) ? "local" : "unicast";
    case "daddrType":
      return isLocal(state.daddr) ? "local" : "unicast";
    case "ctstate":
      return "new";
    case "ctstatus":
      return state.isDnat ? "dnat" : "";
    default:
      return field satisfies never;
  }
}

/** What conntrack says of the connection; iptables asks for its state and translation in one word. */
function connectionWords(kind: "ctstate" | "ctstatus", { isDnat, snat }: PacketState): string[] {
  return [...(kind === "ctstate" ? ["new"] : []), ...(isDnat ? ["dnat"] : []), ...(snat === undefined ? [] : ["snat"])];
}

/** The members of a set or map; undefined if it could not be read. Pure. */
export function entriesIn(members: Members, table: Table): Entries | undefined {
  return members instanceof Entries ? members : table.sets.get(members.set);
}

/** Whether a value stands for `one`. Pure. */
export function holds(value: Value, one: string | number): boolean {
  if (typeof value !== "object") return value === one;
  if ("startsWith" in value) return String(one).startsWith(value.startsWith);
  if ("bits" in value) {
    const address = parseIP(String(one));
    return address !== undefined && contains(value, address);
  }
  const { first, last } = value;
  if (typeof first === "number" && typeof last === "number") return Number(one) >= first && Number(one) <= last;
  const bits = (text: string | number) => parseIP(String(text))?.bits ?? "";
  return bits(one) >= bits(first) && bits(one) <= bits(last);
}
