import { harmless, painted, type TextStyle, wrapped } from "../../explain/text.ts";
import type { SharedEndpoint } from "./endpoints.ts";
import type { Counter } from "./ruleset.ts";
import type { Entrance, PortRules, ServiceChain, ServiceRules } from "./service-rules.ts";
import { serviceOfComment } from "./names.ts";
import { withoutComment } from "./trace-text.ts";

// More endpoints are told in -o json.
const endpointsShownMax = 20;

const kinds = {
  "iptables-nft": "iptables mode (iptables-nft)",
  "iptables-legacy": "iptables mode (iptables-legacy)",
  nft: "nftables mode",
} as const;

/** `nodelet rules`, for people: the way of packets from top to bottom. Pure. */
export function renderServiceRules(found: readonly ServiceRules[], style: TextStyle): string {
  const blocks = found.map(({ service, family, kind, ports }) => {
    const head = `${painted(harmless(service), "bold", style)}  ${family}, ${kinds[kind]}`;
    const isCounted = ports.some(({ entrances }) => entrances.some(({ flows }) => flows !== undefined));
    const counts = isCounted ? ["no rule counts packets here; flows are those that conntrack knows now"] : [];
    return [head, ...counts, ...ports.flatMap((port) => ["", ...portLines(port, style)])];
  });
  return `${blocks.map((lines) => lines.join("\n")).join("\n\n")}\n`;
}

function portLines({ name, protocol, entrances, chains }: PortRules, style: TextStyle): string[] {
  return [
    painted(`${harmless(name === "" ? "a service without a name in the rules" : name)}, ${protocol}`, "bold", style),
    ...entrances.flatMap((entrance) => entranceLines(entrance, style)),
    ...chains.flatMap((chain) => chainLines(chain, style)),
  ];
}

function entranceLines(
  { kind, destination, path, leadsTo, counter, flows, isInSet }: Entrance,
  style: TextStyle,
): string[] {
  const isRefusal = leadsTo === "REJECT" || leadsTo === "DROP";
  const head = `  ${harmless(destination)}  ${harmless(kind)}${isRefusal ? `: ${leadsTo}` : ""}`;
  const text = isRefusal ? painted(head, "yellow", style) : head;
  const lines = [withCounter(text, head.length, counter, flows, style)];
  lines.push(...hanging(path.map(harmless).join(" > ") + (isRefusal ? "" : ` > ${harmless(leadsTo)}`), 6, style));
  if (isInSet === false) {
    lines.push(painted("      is missing from the ipset: packets do not get here", "red", style));
  }
  return lines;
}

function chainLines({ name, rules, endpoints, hasAffinity }: ServiceChain, style: TextStyle): string[] {
  const lines = ["", `  ${harmless(name)}`];
  for (const { text, comment, counter } of rules) {
    const about = serviceOfComment(comment)?.about ?? comment;
    const rule = withoutComment(text);
    const said = about === "" ? [rule] : [about, rule];
    const narrow = { ...style, columns: style.columns - counterColumns };
    const [first = "", ...rest] = said.flatMap((line, at) =>
      line === "" ? [] : hanging(harmless(line), 4 + 2 * at, narrow),
    );
    lines.push(withCounter(first, first.length, counter, undefined, style), ...rest);
  }
  if (hasAffinity) lines.push("    a client that was here before goes to the endpoint that it had");
  const addressColumns = Math.max(0, ...endpoints.map(({ address }) => address.length));
  for (const endpoint of endpoints.slice(0, endpointsShownMax)) {
    lines.push(...endpointLines(endpoint, addressColumns, style));
  }
  const more = endpoints.length - endpointsShownMax;
  if (more > 0) lines.push(`    and ${more} more endpoints: see -o json`);
  return lines;
}

function endpointLines(
  { address, share, chain, counter, flows }: SharedEndpoint,
  addressColumns: number,
  style: TextStyle,
): string[] {
  const head = `    ${`${(share * 100).toFixed(1)}%`.padStart(6)}  ${harmless(address).padEnd(addressColumns)}`;
  const isShort = chain !== undefined && head.length + chain.length + 2 <= style.columns - counterColumns;
  const line = isShort ? `${head}  ${chain}` : head;
  return [withCounter(line, line.length, counter, flows, style)];
}

// Room for "12345678 pkts" at the end of a line.
const counterColumns = 16;

/** The counter stands at the end of the line; where nobody counts packets, the flows that there are. */
function withCounter(
  text: string,
  length: number,
  counter: Counter | undefined,
  flows: number | undefined,
  { columns }: TextStyle,
): string {
  const count = counter?.packets ?? flows;
  if (count === undefined) return text.trimEnd();
  const what = counter === undefined ? "flow" : "packet";
  return `${text}${`  ${count} ${what}${count === 1 ? "" : "s"}`.padStart(columns - length)}`;
}

function hanging(text: string, by: number, { columns }: TextStyle): string[] {
  return wrapped(text, columns - by).map((line) => " ".repeat(by) + line);
}
