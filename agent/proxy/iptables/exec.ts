import { AgentError } from "../../lib/errors.ts";
import type { ExecResult } from "../../lib/exec.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import type { Family } from "../ip.ts";
import { isAtLeast } from "../version.ts";
import { type Iptables, type PacketCount, RefusedLine } from "./port.ts";
import { addToPrint, chainPrint } from "./print.ts";
import { isKept, ListingReader, listingText } from "./listing.ts";

/** Which of the two kernel interfaces an iptables command uses. */
export type Flavour = "nft" | "legacy";

// How long iptables waits for the lock that all its users share: the reference's value.
const lockWaitSeconds = 5;
// The reference's limit for reading rules back. Large tables on slow machines take minutes in the legacy flavour.
const commandTimeoutMs = 300_000;
// Looks come again soon, and whoever is about to write waits for the one under way. Twice as long as the tool waits for the lock.
export const lookTimeoutMs = 10_000;
// iptables' exit code for "somebody else holds the lock", and for more; see expectAccepted.
const resourceProblem = 4;
// A chain that something else refers to is busy for as long as that is there: this passes by nobody's waiting.
const refusalRE =
  /CHAIN_DEL failed|failed \((?!Resource temporarily|Device or resource busy|Cannot allocate|Interrupted|No buffer)/;
// "-c PACKETS BYTES", behind the matches. A comment would have it in quotes, which do not end before the end of the line or a target.
const packetsRE = / -c (\d+) \d+(?= -[jg] |$)/;
// What a command complains about is one line; more is its usage.
const complaintLengthMax = 500;

/** File names of one family's commands. Without a flavour: whatever the machine calls `iptables`. */
export function commandNames(family: Family, flavour: Flavour | undefined) {
  const base = `${family === "IPv4" ? "iptables" : "ip6tables"}${flavour === undefined ? "" : `-${flavour}`}`;
  return { command: base, save: `${base}-save`, restore: `${base}-restore` };
}

/**
 * Drives the iptables commands of one family. Asks for their version, which decides about the lock arguments.
 * Rejects if there is no such command.
 */
export async function createIptables(
  commands: Commands,
  family: Family,
  flavour: Flavour | undefined,
  signal: AbortSignal,
): Promise<Iptables> {
  const names = commandNames(family, flavour);
  const version = await readVersion(commands, names.command, signal);
  const commandLock = isAtLeast(version, [1, 4, 22]) ? ["-w", `${lockWaitSeconds}`] : ["-w"];
  const restoreLock = isAtLeast(version, [1, 6, 2]) ? ["-w", `${lockWaitSeconds}`] : [];
  const options = { timeoutMs: commandTimeoutMs, signal };
  return {
    hasRandomFully: isAtLeast(version, [1, 6, 2]),

    restore: async (text, stop) => {
      const result = await commands.run(names.restore, [...restoreLock, "--noflush", "--counters"], {
        ...options,
        signal: stop,
        stdin: text,
      });
      expectAccepted(result, text);
    },

    listMany: async (chains, stop) => {
      const { text, order } = listingText(chains);
      const reader = new ListingReader(order);
      const result = await commands.lines(names.restore, [...restoreLock, "--noflush"], {
        timeoutMs: lookTimeoutMs,
        signal: stop,
        stdin: text,
        onLine: (line) => reader.line(line),
      });
      const missing =
        result.failure === "exit" && result.code !== resourceProblem && missingChain(result.stderr, order);
      if (missing !== undefined && missing !== false) return { missing };
      expectSuccess(result, "list chains");
      const listed = reader.result();
      if (listed === undefined) {
        throw new AgentError("Unavailable", `list chains: ${names.restore} printed other chains than it was asked for`);
      }
      return listed;
    },

    listRules: async (table, chain, stop) => {
      const rules: string[] = [];
      const result = await commands.lines(names.command, [...commandLock, "-t", table, "-S", chain], {
        ...options,
        signal: stop,
        onLine: (line) => {
          if (line.startsWith("-A ") && isKept(chain, line)) rules.push(line);
        },
      });
      if (result.failure === "exit" && isNotFound(result.stderr)) return undefined;
      expectSuccess(result, `list chain ${chain} of table ${table}`);
      return rules;
    },

    expectTable: async (table, stop) => {
      // One that is built in, in each of our tables.
      const args = [...commandLock, "-t", table, "-S", "OUTPUT"];
      const result = await commands.lines(names.command, args, { ...options, signal: stop, onLine: () => {} });
      expectSuccess(result, `read table ${table}`);
    },

    listPackets: async (table, chain, stop) => {
      const counts: PacketCount[] = [];
      const result = await commands.lines(names.command, [...commandLock, "-t", table, "-v", "-S", chain], {
        timeoutMs: lookTimeoutMs,
        signal: stop,
        onLine: (line) => {
          const packets = packetsRE.exec(line)?.[1];
          if (packets !== undefined) counts.push({ rule: line.replace(packetsRE, ""), packets: Number(packets) });
        },
      });
      if (result.failure === "exit" && isNotFound(result.stderr)) return [];
      expectSuccess(result, `read the counters of chain ${chain} of table ${table}`);
      return counts;
    },

    readChains: async (table, stop) => {
      const chains = new Map<string, number>();
      const result = await commands.lines(names.save, ["-t", table], {
        ...options,
        signal: stop,
        onLine: (line) => {
          // ":NAME policy [counters]"; chains of users have no policy.
          const chain = /^:(\S+) - /.exec(line)?.[1];
          if (chain !== undefined) chains.set(chain, chainPrint([]));
          if (!line.startsWith("-A ")) return;
          const end = line.indexOf(" ", 3);
          const name = line.slice(3, end);
          const print = chains.get(name);
          if (print !== undefined) chains.set(name, addToPrint(print, line.slice(end + 1)));
        },
      });
      expectSuccess(result, `read the chains of table ${table}`);
      return chains;
    },
  };
}

async function readVersion(commands: Commands, command: string, signal: AbortSignal): Promise<readonly number[]> {
  const result = await commands.run(command, ["--version"], { timeoutMs: commandTimeoutMs, signal });
  expectSuccess(result, `ask ${command} for its version`);
  const found = /v(\d+)\.(\d+)(?:\.(\d+))?/.exec(result.stdout);
  if (found === null) throw new AgentError("Invalid", `${command} --version says ${JSON.stringify(result.stdout)}`);
  return found.slice(1, 4).map((part) => Number(part ?? 0));
}

function isNotFound(stderr: string): boolean {
  // iptables-nft 1.8.9 says this, of all things, about a chain that does not exist.
  if (/chain `\S+' in table `\S+' is incompatible/.test(stderr)) return true;
  return [
    "No chain/target/match by that name",
    "No such file or directory",
    "does a matching rule exist",
    "does not exist",
  ].some((text) => stderr.includes(text));
}

/** Throws unless iptables-restore took the text: Unavailable if it may take it later, else Invalid. */
function expectAccepted(result: ExecResult, text: string): void {
  if (result.failure !== "exit") {
    expectSuccess(result, "apply rules");
    return;
  }
  const said = result.stderr
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#") && !line.startsWith("Try `") && !line.endsWith(":"))
    .join("; ");
  // iptables-nft exits with RESOURCE_PROBLEM for everything that the kernel says, not only for what passes.
  const isPassing = result.code === resourceProblem && !refusalRE.test(result.stderr);
  const number = lineNumber(result.stderr);
  const refused = number === undefined || isPassing ? undefined : new RefusedLine(text, number);
  const what = refused === undefined ? "" : ` (line ${refused.number}: ${refused.line})`;
  const message = `apply rules: exit code ${result.code}: ${said.slice(0, complaintLengthMax)}${what}`;
  throw new AgentError(isPassing ? "Unavailable" : "Invalid", message, refused === undefined ? {} : { cause: refused });
}

/** iptables-nft names the chain, iptables-legacy the line. */
function missingChain(stderr: string, order: ReadonlyMap<number, string>): string | undefined {
  const [, chain, table] = /chain `(\S+)' in table `(\S+)' is incompatible/.exec(stderr) ?? [];
  return chain === undefined ? order.get(lineNumber(stderr) ?? 0) : `${table} ${chain}`;
}

function lineNumber(stderr: string): number | undefined {
  const found = /line:? (\d+)/.exec(stderr)?.[1];
  return found === undefined ? undefined : Number(found);
}
