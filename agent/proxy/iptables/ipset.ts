import { hasCode } from "../../lib/errors.ts";
import { type Commands, expectSuccess } from "../commands.ts";
import type { Family } from "../ip.ts";
import { type ClientSets, clientSetPrefix } from "./affinity.ts";
import { lookTimeoutMs } from "./exec.ts";
import type { ServiceSet } from "./port.ts";

// ipset has no lock to wait for.
const setTimeoutMs = 60_000;
// 2^20: far above what the trees can hold; the kernel allocates as the set grows. ipset's own default is 65 536.
const setMembersMax = 1_048_576;

// A list of the recent match holds 100 clients. A set is for a sixteenth of a service's endpoints, so it holds more than their lists
// up to 10 000 endpoints; beyond, the kernel makes room for new clients.
const clientsMax = 65_536;
// Each entry brings its own; sets need a default to have any.
const clientSecondsDefault = 10_800;

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
