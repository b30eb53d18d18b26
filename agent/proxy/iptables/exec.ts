import { AgentError, hasCode } from "../../lib/errors.ts";
import type { ExecResult } from "../../lib/exec.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import type { Family } from "../ip.ts";
import { type ClientSets, clientSetPrefix } from "./affinity.ts";
import { type Iptables, RefusedLine, type ServiceSet } from "./port.ts";
import { addToPrint, chainPrint } from "./print.ts";
import { isKept, ListingReader, listingText } from "./listing.ts";

/** Which of the two kernel interfaces an iptables command uses. */
export type Flavour = "nft" | "legacy";

// How long iptables waits for the lock that all its users share: the reference's value.
const lockWaitSeconds = 5;
// The reference's limit for reading rules back. Large tables on slow machines take minutes in the legacy flavour.
const commandTimeoutMs = 300_000;
// Looks come again soon, and whoever is about to write waits for the one under way. Twice as long as the tool waits for the lock.
const lookTimeoutMs = 10_000;
// ipset has no lock to wait for.
const setTimeoutMs = 60_000;
// 2^20: far above what the trees can hold; the kernel allocates as the set grows. ipset's own default is 65 536.
const setMembersMax = 1_048_576;

// A list of the recent match holds 100 clients. A set is for a sixteenth of a service's endpoints, so it holds more than their lists
// up to 10 000 endpoints; beyond, the kernel makes room for new clients.
const clientsMax = 65_536;
// Each entry brings its own; sets need a default to have any.
const clientSecondsDefault = 10_800;
// iptables' exit code for "somebody else holds the lock", and for more; see expectAccepted.
const resourceProblem = 4;
// A chain that something else refers to is busy for as long as that is there: this passes by nobody's waiting.
const refusalRE =
  /CHAIN_DEL failed|failed \((?!Resource temporarily|Device or resource busy|Cannot allocate|Interrupted|No buffer)/;
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
  const commandLock = isAtLeast(version, 1, 4, 22) ? ["-w", `${lockWaitSeconds}`] : ["-w"];
  const restoreLock = isAtLeast(version, 1, 6, 2) ? ["-w", `${lockWaitSeconds}`] : [];
  const options = { timeoutMs: commandTimeoutMs, signal };
  return {
    hasRandomFully: isAtLeast(version, 1, 6, 2),

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

/** Drives the `ipset` command for one set. */
export function createServiceSet(commands: Commands, family: Family, name: string): ServiceSet {
  const kind = `hash:ip,port family ${family === "IPv4" ? "inet" : "inet6"} hashsize 1024 maxelem ${setMembersMax}`;
  const restore = async (text: string, signal: AbortSignal) => {
    const result = await commands.run("ipset", ["restore", "-exist"], { stdin: text, timeoutMs: setTimeoutMs, signal });
    expectSuccess(result, `change set ${name}`);
  };
  const isAbsent = (stderr: string) => stderr.includes("does not exist");
  const temporary = `${name}-NEW`;
  return {
    name,
    replace: async (members, signal) => {
      let text = `create ${name} ${kind}\ncreate ${temporary} ${kind}\nflush ${temporary}\n`;
      for (const member of members) text += `add ${temporary} ${member}\n`;
      text += `swap ${temporary} ${name}\ndestroy ${temporary}\n`;
      try {
        await restore(text, signal);
      } catch (err) {
        if (!hasCode(err, "Invalid")) throw err;
        // Sets of these names may be there and of another kind, or smaller. They can go unless a rule refers to them.
        for (const set of [temporary, name]) {
          await commands.run("ipset", ["destroy", set], { timeoutMs: setTimeoutMs, signal });
        }
        await restore(text, signal);
      }
    },
    change: async (add, remove, signal) => {
      let text = "";
      for (const member of remove) text += `del ${name} ${member}\n`;
      for (const member of add) text += `add ${name} ${member}\n`;
      if (text !== "") await restore(text, signal);
    },
    count: async (signal) => {
      const result = await commands.run("ipset", ["list", name, "-terse"], { timeoutMs: lookTimeoutMs, signal });
      if (result.failure === "exit" && isAbsent(result.stderr)) return undefined;
      expectSuccess(result, `look at set ${name}`);
      const found = /^Number of entries: (\d+)$/m.exec(result.stdout);
      return found === null ? undefined : Number(found[1]);
    },
    destroy: async (signal) => {
      for (const set of [name, temporary]) {
        const result = await commands.run("ipset", ["destroy", set], { timeoutMs: setTimeoutMs, signal });
        if (result.failure === "exit" && isAbsent(result.stderr)) continue;
        expectSuccess(result, `remove set ${set}`);
      }
    },
  };
}

/** Drives the `ipset` command for the sets of clients of one family. */
export function createClientSets(commands: Commands, family: Family): ClientSets {
  const kind = `hash:ip family ${family === "IPv4" ? "inet" : "inet6"} hashsize 64 maxelem ${clientsMax} timeout ${clientSecondsDefault} forceadd`;
  const run = async (args: string[], stdin: string | undefined, signal: AbortSignal) =>
    await commands.run("ipset", args, { timeoutMs: setTimeoutMs, signal, ...(stdin === undefined ? {} : { stdin }) });
  return {
    create: async (names, signal) => {
      const text = names.map((name) => `create ${name} ${kind}\n`).join("");
      if (text !== "") expectSuccess(await run(["restore", "-exist"], text, signal), "create sets of clients");
    },
    list: async (signal) => {
      const found: string[] = [];
      const onLine = (name: string) => {
        if (name.startsWith(clientSetPrefix(family))) found.push(name);
      };
      const result = await commands.lines("ipset", ["list", "-name"], { timeoutMs: setTimeoutMs, signal, onLine });
      expectSuccess(result, "list sets");
      return found;
    },
    destroy: async (names, signal) => {
      for (const name of names) {
        const result = await run(["destroy", name], undefined, signal);
        if (result.failure !== "exit") expectSuccess(result, `remove set ${name}`);
      }
    },
  };
}

/** Whether sets can be used at all: the command is there and the kernel answers it. Returns why not, or undefined. */
export async function whyNoIpset(commands: Commands, signal: AbortSignal): Promise<string | undefined> {
  const result = await commands.run("ipset", ["list", "-name"], { timeoutMs: setTimeoutMs, signal });
  return result.failure === undefined ? undefined : result.message;
}

async function readVersion(commands: Commands, command: string, signal: AbortSignal): Promise<readonly number[]> {
  const result = await commands.run(command, ["--version"], { timeoutMs: commandTimeoutMs, signal });
  expectSuccess(result, `ask ${command} for its version`);
  const found = /v(\d+)\.(\d+)(?:\.(\d+))?/.exec(result.stdout);
  if (found === null) throw new AgentError("Invalid", `${command} --version says ${JSON.stringify(result.stdout)}`);
  return found.slice(1, 4).map((part) => Number(part ?? 0));
}

function isAtLeast(version: readonly number[], ...wanted: number[]): boolean {
  for (const [i, part] of wanted.entries()) {
    const have = version[i] ?? 0;
    if (have !== part) return have > part;
  }
  return true;
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
