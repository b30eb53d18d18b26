import { type Commands, expectSuccess } from "../commands.ts";
import type { Family } from "../ip.ts";
import { type ClientSets, clientSetPrefix } from "./affinity.ts";
import { lookTimeoutMs } from "./exec.ts";
import type { Ipset } from "./port.ts";
import { isOwnSet, kindOfSet, temporarySetName } from "./set-names.ts";

// ipset has no lock to wait for.
const setTimeoutMs = 60_000;
// ipset's own default, of a set that nobody has grown. The kernel allocates as a set fills, whatever its limit.
const setMembersMin = 65_536;
// So much of a set stays free when it is made: it is full, and made anew, at its fourth as many members.
const growth = 4;

// A list of the recent match holds 100 clients. A set is for a sixteenth of a service's endpoints, so it holds more than their lists
// up to 10 000 endpoints; beyond, the kernel makes room for new clients.
const clientsMax = 65_536;
// Each entry brings its own; sets need a default to have any.
const clientSecondsDefault = 10_800;

/** The `maxelem` of a set that is made for so many members: a power of two, with room to grow. Pure. */
export function setSizeFor(members: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(setMembersMin, members * growth)));
}

function familyWord(family: Family): string {
  return `family ${family === "IPv4" ? "inet" : "inet6"}`;
}

interface PresentSet {
  readonly kind: string;
  readonly count: number;
}

/** Drives the `ipset` command for the sets of one family, but for what clients are in those of clients. */
export function createIpset(commands: Commands, family: Family): Ipset {
  const restore = async (text: string, what: string, signal: AbortSignal) => {
    if (text === "") return;
    const result = await commands.run("ipset", ["restore", "-exist"], { stdin: text, timeoutMs: setTimeoutMs, signal });
    expectSuccess(result, what);
  };
  const createLine = (name: string, kind: string, size = setSizeFor(0)) =>
    `create ${name} ${kind} ${familyWord(family)} hashsize 1024 maxelem ${size}\n`;
  const present = async (signal: AbortSignal) => {
    const found = new Map<string, { kind: string; count: number }>();
    let current = { kind: "", count: 0 };
    const onLine = (line: string) => {
      const [, word = "", value = ""] = /^(Name|Type|Number of entries): (\S+)/.exec(line) ?? [];
      if (word === "Name") {
        current = { kind: "", count: 0 };
        if (isOwnSet(family, value)) found.set(value, current);
      } else if (word === "Type") current.kind = value;
      else if (word !== "") current.count = Number(value);
    };
    const result = await commands.lines("ipset", ["list", "-terse"], { timeoutMs: lookTimeoutMs, signal, onLine });
    expectSuccess(result, "look at sets");
    return found as ReadonlyMap<string, PresentSet>;
  };
  const destroy = async (names: Iterable<string>, signal: AbortSignal) => {
    for (const name of names) {
      const result = await commands.run("ipset", ["destroy", name], { timeoutMs: setTimeoutMs, signal });
      if (result.failure !== "exit") expectSuccess(result, `remove set ${name}`);
    }
  };
  /** What of these is not there. A set of one of the names and another type goes, unless a rule refers to it. */
  const absent = async (names: readonly string[], signal: AbortSignal) => {
    const before = await present(signal);
    const odd = names.filter((name) => (before.get(name)?.kind ?? kindOfSet(family, name)) !== kindOfSet(family, name));
    if (odd.length === 0) return names.filter((name) => !before.has(name));
    await destroy(odd, signal);
    const after = await present(signal);
    return names.filter((name) => !after.has(name));
  };
  const replaceText = (sets: ReadonlyMap<string, readonly string[]>, isThere: (name: string) => boolean) => {
    const temporary = temporarySetName(family);
    let text = `destroy ${temporary}\n`;
    for (const [name, members] of sets) {
      const kind = kindOfSet(family, name);
      text += createLine(temporary, kind, setSizeFor(members.length));
      for (const member of members) text += `add ${temporary} ${member}\n`;
      text += isThere(name) ? `swap ${temporary} ${name}\ndestroy ${temporary}\n` : `rename ${temporary} ${name}\n`;
    }
    return text;
  };
  return {
    create: async (names, signal) => {
      const missing = await absent([...names], signal);
      const text = missing.map((name) => createLine(name, kindOfSet(family, name))).join("");
      await restore(text, "create sets", signal);
    },
    replace: async (sets, signal) => {
      const members = new Map([...sets].map(([name, some]) => [name, [...some]]));
      const missing = new Set(await absent([...members.keys()], signal));
      await restore(
        replaceText(members, (name) => !missing.has(name)),
        `fill set ${[...members.keys()].join(", ")}`.slice(0, 200),
        signal,
      );
    },
    change: async (sets, signal) => {
      let text = "";
      for (const [name, { add, remove }] of sets) {
        for (const member of remove) text += `del ${name} ${member}\n`;
        for (const member of add) text += `add ${name} ${member}\n`;
      }
      await restore(text, "change sets", signal);
    },
    counts: async (signal) => new Map([...(await present(signal))].map(([name, { count }]) => [name, count])),
    destroy,
  };
}

/** Drives the `ipset` command for the sets of clients of one family. */
export function createClientSets(commands: Commands, family: Family): ClientSets {
  const kind = `hash:ip ${familyWord(family)} hashsize 64 maxelem ${clientsMax} timeout ${clientSecondsDefault} forceadd`;
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
