import { posix } from "node:path";

/** A file of the repository; `path` is relative to its root. */
export interface SourceFile {
  path: string;
  text: string;
}

/** A house rule: says what is wrong with one file, in words that tell what to do. */
export type Rule = (file: SourceFile) => string[];

// Files up to 250 lines read well; from 400 on, look for a seam.
export const linesReported = 400;
export const linesMax = 700;

/** Folders of agent/ by layer: a folder imports from its own layer and those below. */
const layers: string[][] = [
  ["lib", "version.ts"],
  ["kube", "runtime", "plugins", "volumes", "probes", "cni", "config"],
  ["pods", "node", "stats", "server", "proxy", "explain"],
  ["main.ts", "signals.ts", "roles"],
];

/** Folders of one layer that must not know each other: either can be switched off. */
const strangers = [["pods", "proxy"]];

/** Libraries that only one place may see, and whether they are too heavy to be loaded before they are used. */
const confined: { library: string; home: string; isLazy: boolean }[] = [
  { library: "@grpc/grpc-js", home: "agent/lib/grpc/", isLazy: true },
  { library: "@grpc/proto-loader", home: "agent/lib/grpc/", isLazy: true },
  { library: "dockerode", home: "agent/runtime/docker/", isLazy: true },
  { library: "systeminformation", home: "agent/node/", isLazy: true },
  { library: "pino", home: "agent/lib/log.ts", isLazy: false },
];

const isAgent = (path: string) => isUnder(path, ["agent/", "cni/"]) && path.endsWith(".ts");
const isTest = (path: string) => path.startsWith("test/") && path.endsWith(".test.ts");
const isUnder = (path: string, places: string[]) => places.some((place) => path.startsWith(place));

/** Arrows between the folders of agent/ point one way. */
export const layering: Rule = ({ path, text }) => {
  const from = folderOf(path);
  if (from === undefined) return [];
  return importsOf(text).flatMap(({ target }) => {
    if (!target.startsWith(".")) return [];
    const resolved = posix.join(posix.dirname(path), target);
    if (resolved.startsWith("test/")) return [`imports ${resolved}: the daemon does not know its tests`];
    const to = folderOf(resolved);
    if (to === undefined) return [];
    if (layerOf(to) < 0) return [`imports ${to}/, which has no layer yet: add it to the table in this test`];
    if (strangers.some((pair) => from !== to && pair.includes(from) && pair.includes(to))) {
      return [`imports ${resolved}: ${from}/ and ${to}/ do not know each other`];
    }
    return layerOf(to) > layerOf(from) ? [`imports ${resolved}: ${to} lies above ${from}`] : [];
  });
};

/** Foreign libraries stay where their shapes are translated, and heavy ones are loaded by `import()` alone. */
export const libraries: Rule = ({ path, text }) => {
  if (!isAgent(path)) return [];
  return importsOf(text).flatMap(({ target, isTypeOnly, isDynamic }) => {
    const found = confined.find(({ library }) => target === library || target.startsWith(`${library}/`));
    if (found === undefined) return [];
    if (!path.startsWith(found.home)) return [`imports ${target}: only ${found.home} may`];
    return found.isLazy && !isTypeOnly && !isDynamic ? [`imports ${target} at start: use await import()`] : [];
  });
};

interface Ban {
  pattern: RegExp;
  why: string;
  /** Files and folders, by prefix, that are allowed to. */
  except: string[];
}

const fsSync =
  /\b(?:access|appendFile|chmod|chown|close|copyFile|cp|exists|fstat|fsync|lstat|mkdir|open|read|readdir|readFile|readlink|realpath|rename|rm|rmdir|stat|symlink|unlink|utimes|write|writeFile)Sync\b/;

const bans: Ban[] = [
  {
    pattern: /["'](?:node:)?child_process["']/,
    why: "starts processes itself: use exec() of lib/exec.ts, which has a timeout, a signal and bounded output",
    except: [
      "agent/lib/exec.ts",
      "agent/lib/exec-stream.ts",
      "agent/lib/namespace-dialer.ts", // a helper that stays and hands sockets over
      "agent/proxy/commands.ts", // reads huge outputs line by line
    ],
  },
  { pattern: /\bshell:\s*(?:true|["'])/, why: "asks for a shell: pass an argument array", except: [] },
  { pattern: fsSync, why: "does file I/O in the event loop: use node:fs/promises", except: ["agent/config/"] },
  {
    pattern: /\b(?:gzip|gunzip|deflate|inflate|pbkdf2|scrypt|generateKeyPair|generateKey)Sync\b/,
    why: "computes in the event loop: use the asynchronous form",
    except: [],
  },
  {
    pattern: /(?<![.\w])set(?:Timeout|Interval)\(|\bset(?:Timeout|Interval)\b.*["'](?:node:)?timers(?:\/promises)?["']/,
    why: "takes time from the machine: use the Clock, which tests can own",
    except: ["agent/lib/clock.ts", "agent/lib/exec.ts"],
  },
  {
    pattern: /\bprocess\.env\b/,
    why: "reads the environment: agent/config does that",
    except: [
      "agent/main.ts",
      "agent/config/",
      "agent/lib/process-setup.ts", // sets, does not read
      "agent/kube/exec-credential.ts", // the plugin inherits it
      "agent/kube/kubeconfig.ts",
      "agent/kube/transport.ts", // DISABLE_HTTP2, as client-go
      "cni/plugins.ts", // the plugin inherits it
    ],
  },
];

/** Calls that the daemon must not make, but in the places named. */
export const bannedCalls: Rule = ({ path, text }) => {
  if (!isAgent(path)) return [];
  const code = withoutComments(text);
  return bans.flatMap(({ pattern, why, except }) => {
    if (isUnder(path, except)) return [];
    return code.split("\n").flatMap((line, i) => (pattern.test(line) ? [`line ${i + 1} ${why}`] : []));
  });
};

// Written in pieces, so that this file passes its own test.
const leftover = new RegExp(`\\b(?:${["TO", "FIX", "XX"].join("|")})(?:DO|ME|X)\\b`);
const focused = new RegExp(`\\b(?:test|it|describe|suite)\\.(?:only|skip|todo)\\b`);
const workplace = new RegExp(`/(?:work/(?:main|shared)|tmp/prompts)\\b`);

/** Nothing half-done and nothing of somebody's own machine. */
export const leftovers: Rule = ({ path, text }) =>
  text
    .split("\n")
    .flatMap((line, i) => [
      ...(leftover.test(line) ? [`line ${i + 1} holds a note to finish: finish it, or open an issue`] : []),
      ...(isTest(path) && focused.test(line) ? [`line ${i + 1} runs only part of the tests`] : []),
      ...(workplace.test(line) ? [`line ${i + 1} names a path of one machine`] : []),
    ]);

/** A file is read as a whole. */
export const length: Rule = ({ path, text }) => {
  const lines = lineCount(text);
  return path.endsWith(".ts") && lines > linesMax ? [`has ${lines} lines, more than ${linesMax}: split it`] : [];
};

/** Only text is kept in the repository: whatever is binary is built. */
export const textOnly: Rule = ({ text }) => (text.includes("\0") ? ["is a binary file: build it instead"] : []);

/** Every rule about single files. */
export const rules: Rule[] = [layering, libraries, bannedCalls, leftovers, length, textOnly];

/** Number of lines, the last one counted whether it ends or not. */
export function lineCount(text: string): number {
  return text.split("\n").length - (text.endsWith("\n") ? 1 : 0);
}

interface Import {
  target: string;
  isTypeOnly: boolean;
  isDynamic: boolean;
}

function importsOf(text: string): Import[] {
  const code = withoutComments(text);
  const found: Import[] = [];
  for (const [, keyword, type, target] of code.matchAll(/^\s*(import|export)\s+(type\s)?[^;"']*?["']([^"']+)["'];/gm)) {
    if (keyword !== undefined && target !== undefined) {
      found.push({ target, isTypeOnly: type !== undefined, isDynamic: false });
    }
  }
  for (const [, typeOf, target] of code.matchAll(/(typeof\s+)?\bimport\(\s*["']([^"']+)["']/g)) {
    if (target !== undefined) found.push({ target, isTypeOnly: typeOf !== undefined, isDynamic: true });
  }
  return found;
}

/** Comments become blank, lines stay where they are. Good enough for our style; strings that hold `//` lose their end. */
function withoutComments(text: string): string {
  return text
    .replaceAll(/\/\*[\s\S]*?\*\//g, (comment) => comment.replaceAll(/[^\n]/g, " "))
    .replaceAll(/(^|[\s;,{}()])\/\/[^\n]*/g, "$1");
}

function folderOf(path: string): string | undefined {
  const [first, second] = path.split("/");
  if (first === "cni") return "cni";
  return first === "agent" ? second : undefined;
}

function layerOf(folder: string): number {
  return layers.findIndex((names) => names.includes(folder));
}
