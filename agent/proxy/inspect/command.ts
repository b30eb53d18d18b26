import type { RulesCommand, TraceCommand } from "../../config/inspect-rules.ts";
import type { Terminal } from "../../explain/command.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { type Family, formatIP, parseIP } from "../ip.ts";
import { countFlows } from "./flows.ts";
import { type Kernel, readRecent, readRoutes, readRuleset, surroundingsOf, thisKernel } from "./read.ts";
import type { Ruleset } from "./ruleset.ts";
import { findServiceRules, type ServiceQuery, type ServiceRules } from "./service-rules.ts";
import { renderServiceRules } from "./service-text.ts";
import { trace, type Trace } from "./trace.ts";
import { renderTrace } from "./trace-text.ts";
import type { Packet } from "./match.ts";

// Readable in any window; longer lines are not read faster.
const columnsMin = 60;
const columnsMax = 120;
const columnsDefault = 80;
// Each walk asks for the lists that it met; a chain of services that ask one another ends far before.
const walksMax = 8;

/** Reads the kernel's rules and prints what was asked. @returns the exit code: 0 an answer, 1 none, or rules that cannot be read */
export async function runRulesInspection(
  command: RulesCommand | TraceCommand,
  terminal: Terminal,
  kernel: Kernel = thisKernel(),
): Promise<number> {
  try {
    return command.kind === "rules"
      ? await showRules(command, terminal, kernel)
      : await showTrace(command, terminal, kernel);
  } catch (err) {
    terminal.err(`nodelet: ${messageOf(err)}\n`);
    return 1;
  }
}

async function showRules({ service, output }: RulesCommand, terminal: Terminal, kernel: Kernel): Promise<number> {
  const query: ServiceQuery =
    "address" in service ? { address: canonical(service.address) } : { key: `${service.namespace}/${service.name}` };
  const families: readonly Family[] = "address" in query ? [familyOf(query.address)] : ["IPv4", "IPv6"];
  const found: ServiceRules[] = [];
  const unread: string[] = [];
  const modes = new Set<string>();
  for (const family of families) {
    const ruleset = await readRuleset(kernel, family, { withForeign: false });
    const all = findServiceRules(ruleset, query);
    found.push(...all.filter(({ kind }) => kind !== "nft"));
    const silent = all.filter(({ kind }) => kind === "nft");
    if (silent.length > 0) {
      const { rules, uncounted } = await countFlows(silent, family, kernel.commands);
      found.push(...rules);
      if (uncounted !== undefined) unread.push(uncounted);
    }
    unread.push(...ruleset.unread);
    for (const mode of proxyModes(ruleset)) modes.add(mode);
  }
  for (const line of unread) terminal.err(`nodelet: ${line}\n`);
  if (output === "json") terminal.out(`${JSON.stringify(found, undefined, 2)}\n`);
  if (found.length > 0) {
    if (output === "text") terminal.out(renderServiceRules(found, styleOf(terminal)));
    return 0;
  }
  const what = "address" in query ? `the address ${query.address}` : `service ${query.key}`;
  if (output === "text") terminal.err(`nodelet: ${nothingFound(what, [...modes])}\n`);
  return 1;
}

function nothingFound(what: string, modes: readonly string[]): string {
  if (modes.length === 0) return "there are no rules of a service proxy on this machine: has one run here?";
  return `no rule names ${what} (the rules here are those of ${modes.join(" and ")}). Headless services have none; is the name right (-n NAMESPACE)?`;
}

async function showTrace(command: TraceCommand, terminal: Terminal, kernel: Kernel): Promise<number> {
  const result = await traceFromKernel(command, kernel);
  terminal.out(
    command.output === "json" ? `${JSON.stringify(result, undefined, 2)}\n` : renderTrace(result, styleOf(terminal)),
  );
  return 0;
}

/** Follows a packet through the rules that the kernel has now. Rejects with an `AgentError` if they cannot be read. */
export async function traceFromKernel(
  command: Pick<TraceCommand, "source" | "destination" | "port" | "protocol" | "inInterface">,
  kernel: Kernel,
): Promise<Trace> {
  const [saddr, daddr] = [canonical(command.source), canonical(command.destination)];
  const family = familyOf(daddr);
  const ruleset = await readRuleset(kernel, family, { withForeign: true });
  if (ruleset.tables.length === 0) {
    const why = ruleset.unread[0] ?? "neither iptables nor nft can be run";
    throw new AgentError("Unavailable", `the kernel's rules cannot be read: ${why}`);
  }
  const routes = await readRoutes(kernel, family);
  const lists = new Map<string, ReadonlySet<string>>();
  const surroundings = surroundingsOf(routes, lists);
  let iif = command.inInterface;
  if (iif === undefined && !surroundings.isLocal(saddr)) {
    iif = surroundings.interfaceTo(saddr);
    if (iif === undefined) throw new AgentError("Invalid", `there is no route to ${saddr}: say --in-interface`);
  }
  const packet: Packet = { saddr, daddr, protocol: command.protocol, dport: command.port, iif };
  const forwards = await isForwarding(kernel, family);
  const isInterfaceGuessed = iif !== command.inInterface;
  const context = { surroundings, forwards, isInterfaceGuessed, extraNotes: modeNotes(ruleset) };
  let result = trace(ruleset, packet, context);
  for (let n = 0; result.walked.unknownLists.length > 0 && n < walksMax; n += 1) {
    for (const list of result.walked.unknownLists) lists.set(list, await readRecent(kernel, list));
    result = trace(ruleset, packet, context);
  }
  return result.trace;
}

async function isForwarding({ read }: Kernel, family: Family): Promise<boolean> {
  const path = family === "IPv4" ? "net/ipv4/ip_forward" : "net/ipv6/conf/all/forwarding";
  const text = await read(`/proc/sys/${path}`).catch(() => "1"); // not known is no reason to alarm anybody
  return text.trim() !== "0";
}

/** Proxies whose rules are there. */
function proxyModes({ tables }: Ruleset): string[] {
  return tables.flatMap(({ kind, name, chains }) => {
    if (kind === "nft") return chains.has("services") && name.endsWith(" kube-proxy") ? ["nftables mode"] : [];
    return name === "nat" && chains.has("KUBE-SERVICES") ? [kind] : [];
  });
}

function modeNotes(ruleset: Ruleset): string[] {
  const modes = proxyModes(ruleset);
  if (modes.length === 0) return ["there are no rules of a service proxy on this machine"];
  return modes.length === 1 ? [] : [`rules of more than one service proxy are here: ${modes.join(", ")}`];
}

function styleOf({ columns = columnsDefault, isColoured }: Terminal) {
  return { columns: Math.min(columnsMax, Math.max(columnsMin, columns)), isColoured };
}

/** As the rules write it; what is no address was refused when the command line was read. */
function canonical(text: string): string {
  const ip = parseIP(text);
  if (ip === undefined) throw new AgentError("Invalid", `${text} is no IP address`);
  return formatIP(ip);
}

function familyOf(address: string): Family {
  return address.includes(":") ? "IPv6" : "IPv4";
}
