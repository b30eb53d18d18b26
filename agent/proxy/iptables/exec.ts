import { AgentError } from "../../lib/errors.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import type { Family } from "../ip.ts";
import type { Iptables, ServiceSet } from "./port.ts";
import { addToPrint, chainPrint } from "./print.ts";

/** Which of the two kernel interfaces an iptables command uses. */
export type Flavour = "nft" | "legacy";

// How long iptables waits for the lock that all its users share: the reference's value.
const lockWaitSeconds = 5;
// The reference's limit for reading rules back. Large tables on slow machines take minutes in the legacy flavour.
const commandTimeoutMs = 300_000;
// ipset has no lock to wait for.
const setTimeoutMs = 60_000;
// Longest text of one failing line in an error.
const lineLengthMax = 300;
// 2^20: far above what the trees can hold; the kernel allocates as the set grows. ipset's own default is 65 536.
const setMembersMax = 1_048_576;

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
      expectSuccess(result, "apply rules", (stderr) => failedLine(stderr, text));
    },

    listRules: async (table, chain, stop) => {
      const result = await commands.run(names.command, [...commandLock, "-t", table, "-S", chain], {
        ...options,
        signal: stop,
      });
      if (result.failure === "exit" && isNotFound(result.stderr)) return undefined;
      expectSuccess(result, `list chain ${chain} of table ${table}`);
      return result.stdout.split("\n").filter((line) => line.startsWith("-A "));
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
  return {
    name,
    replace: async (members, signal) => {
      const temporary = `${name}-NEW`;
      let text = `create ${name} ${kind}\ncreate ${temporary} ${kind}\nflush ${temporary}\n`;
      for (const member of members) text += `add ${temporary} ${member}\n`;
      await restore(`${text}swap ${temporary} ${name}\ndestroy ${temporary}\n`, signal);
    },
    change: async (add, remove, signal) => {
      let text = "";
      for (const member of remove) text += `del ${name} ${member}\n`;
      for (const member of add) text += `add ${name} ${member}\n`;
      if (text !== "") await restore(text, signal);
    },
    count: async (signal) => {
      const result = await commands.run("ipset", ["list", name, "-terse"], { timeoutMs: setTimeoutMs, signal });
      if (result.failure === "exit" && isAbsent(result.stderr)) return undefined;
      expectSuccess(result, `look at set ${name}`);
      const found = /^Number of entries: (\d+)$/m.exec(result.stdout);
      return found === null ? undefined : Number(found[1]);
    },
    destroy: async (signal) => {
      for (const set of [name, `${name}-NEW`]) {
        const result = await commands.run("ipset", ["destroy", set], { timeoutMs: setTimeoutMs, signal });
        if (result.failure === "exit" && isAbsent(result.stderr)) continue;
        expectSuccess(result, `remove set ${set}`);
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

function failedLine(stderr: string, text: string): string {
  const number = /line:? (\d+)/.exec(stderr)?.[1];
  const line = number === undefined ? undefined : text.split("\n", Number(number))[Number(number) - 1];
  return line === undefined ? "" : ` (line ${number}: ${line.slice(0, lineLengthMax)})`;
}
