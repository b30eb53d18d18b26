import { readFile } from "node:fs/promises";
import { ignoreErrno } from "../../lib/errno.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import { type Commands, createCommands, expectSuccess } from "../commands.ts";
import { commandNames } from "../iptables/exec.ts";
import { type Family, formatIP, parseIP } from "../ip.ts";
import { tableName } from "../nftables/fixed.ts";
import { familyWords } from "../nftables/render.ts";
import { parseNftList, parseNftTable } from "./nft-json.ts";
import { isJson, textOf } from "./nft-values.ts";
import { type Ipsets, parseIpsets, SaveReader } from "./parse-save.ts";
import { interfaceTo, isLocalAddress, parseRoutes4, parseRoutes6, type Routes } from "./routes.ts";
import type { Ruleset, Table } from "./ruleset.ts";
import type { Surroundings } from "./match.ts";

/** How the kernel is looked at. */
export interface Kernel {
  readonly commands: Commands;
  /** Rejects as `readFile` does. */
  read(path: string): Promise<string>;
}

/** This machine's kernel, in the network namespace of this process. */
export function thisKernel(): Kernel {
  return { commands: createCommands(), read: async (path) => await readFile(path, "utf8") };
}

// Reading a hundred thousand rules takes seconds, in the legacy flavour on a busy machine minutes.
const readTimeoutMs = 300_000;
// Ten thousand services with five endpoints each come to a tenth of it.
const outputBytesMax = 256 * 1024 * 1024;
// What xt_recent takes for names of lists, less what means something in a path.
const listNameRE = /^[A-Za-z0-9_-][\w.-]*$/;
const noIpsets: Ipsets = { kinds: new Map(), entries: new Map() };

export interface ReadOptions {
  /** Tables of other programs, too: a packet meets them all. */
  readonly withForeign: boolean;
}

/** Reads all rules of one IP family. What is not installed is not there; what cannot be read is told in `unread`. */
export async function readRuleset(kernel: Kernel, family: Family, { withForeign }: ReadOptions): Promise<Ruleset> {
  const unread: string[] = [];
  const tables: Table[] = [];
  const readers: { reader: SaveReader; kind: "iptables-legacy" | "iptables-nft" }[] = [];
  for (const flavour of ["legacy", "nft"] as const) {
    const reader = await readSaved(kernel, commandNames(family, flavour).save, unread);
    if (reader !== undefined) readers.push({ reader, kind: `iptables-${flavour}` });
  }
  // Older machines have but one iptables.
  if (readers.length === 0) {
    const reader = await readSaved(kernel, commandNames(family, undefined).save, unread);
    if (reader !== undefined) readers.push({ reader, kind: "iptables-legacy" });
  }
  const sets = readers.some(({ reader }) => reader.hasSets) ? await readIpsets(kernel, unread) : noIpsets;
  for (const { reader, kind } of readers) tables.push(...reader.result(kind, family, sets));
  const seen = new Set(readers.flatMap(({ reader, kind }) => (kind === "iptables-nft" ? reader.tableNames : [])));
  tables.push(...(await readNftTables(kernel, family, withForeign, seen, unread)));
  return { family, tables, unread };
}

async function readSaved({ commands }: Kernel, save: string, unread: string[]): Promise<SaveReader | undefined> {
  const reader = new SaveReader();
  const result = await commands.lines(save, ["-c"], { onLine: (line) => reader.line(line), timeoutMs: readTimeoutMs });
  if (result.failure === undefined) return reader;
  if (result.failure !== "spawn") unread.push(result.message);
  return undefined;
}

async function readIpsets({ commands }: Kernel, unread: string[]): Promise<Ipsets> {
  const lines: string[] = [];
  const onLine = (line: string) => void lines.push(line);
  const result = await commands.lines("ipset", ["save"], { onLine, timeoutMs: readTimeoutMs });
  if (result.failure === undefined) return parseIpsets(lines);
  unread.push(`rules look into ipsets, which cannot be read: ${result.message}`);
  return noIpsets;
}

/**
 * One table at a time: an older nft may stumble over what a newer one made, and that must cost this table only.
 * @param seen tables of this family that are known already
 */
async function readNftTables(
  { commands }: Kernel,
  family: Family,
  withForeign: boolean,
  seen: ReadonlySet<string>,
  unread: string[],
): Promise<Table[]> {
  const { ip } = familyWords(family);
  const options = { timeoutMs: readTimeoutMs, outputBytesMax };
  const list = await commands.run("nft", ["--json", "list", "tables"], options);
  if (list.failure === "spawn") return [];
  const wanted: { owner: string; name: string }[] = [];
  try {
    expectSuccess(list, "list the tables of nftables");
    for (const entry of parseNftList(list.stdout)) {
      const table = isJson(entry) ? entry["table"] : undefined;
      if (!isJson(table)) continue;
      const [owner, name] = [textOf(table["family"]), textOf(table["name"])];
      const isOurs = owner === ip && name === tableName;
      const isMet = owner === "inet" || (owner === ip && !seen.has(name));
      if (isOurs || (withForeign && isMet)) wanted.push({ owner, name });
    }
  } catch (err) {
    unread.push(messageOf(err));
  }
  const tables: Table[] = [];
  for (const { owner, name } of wanted) {
    try {
      const result = await commands.run("nft", ["--json", "list", "table", owner, name], options);
      expectSuccess(result, `table ${owner} ${name}`);
      if (result.truncated) throw new AgentError("Unavailable", `table ${owner} ${name} is too long`);
      tables.push(parseNftTable(`${owner} ${name}`, parseNftList(result.stdout), family));
    } catch (err) {
      unread.push(`not read, so not followed: ${messageOf(err)}`);
    }
  }
  return tables;
}

/** Reads the routes of one IP family: its local addresses and the main table. */
export async function readRoutes({ read }: Kernel, family: Family): Promise<Routes> {
  if (family === "IPv4") return parseRoutes4(await read("/proc/net/fib_trie"), await read("/proc/net/route"));
  // Neither is there without IPv6.
  const [addresses, routes] = ["/proc/net/if_inet6", "/proc/net/ipv6_route"].map((path) =>
    read(path).catch(ignoreErrno("ENOENT")),
  );
  return parseRoutes6((await addresses) ?? "", (await routes) ?? "");
}

/** Which addresses a list of xt_recent has; none if there is no such list. */
export async function readRecent({ read }: Kernel, list: string): Promise<ReadonlySet<string>> {
  if (!listNameRE.test(list)) return new Set();
  const text = (await read(`/proc/net/xt_recent/${list}`).catch(ignoreErrno("ENOENT"))) ?? "";
  const found = [...text.matchAll(/^src=(\S+)/gm)].map(([, address = ""]) => parseIP(address));
  return new Set(found.flatMap((address) => (address === undefined ? [] : [formatIP(address)])));
}

/** What a walk asks about the machine. @param lists those of xt_recent that were read */
export function surroundingsOf(routes: Routes, lists: ReadonlyMap<string, ReadonlySet<string>>): Surroundings {
  return {
    isLocal: (address) => isLocalAddress(routes, address),
    interfaceTo: (address) => (isLocalAddress(routes, address) ? "lo" : interfaceTo(routes, address)),
    recalls: (list, address) => lists.get(list)?.has(address),
  };
}
