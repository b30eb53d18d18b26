import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../lib/clock.ts";
import { errnoOf } from "../lib/errno.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { type DockerConfigShape, type Keyring, keyringFromDockerConfig } from "./images-auth.ts";

// kubelet's: a file that changed is noticed this late.
export const cacheMs = 300_000;

export interface NodeDockerConfigOptions {
  /** The agent's `--root-dir`, searched first. */
  rootDir: string;
  /** The process's working directory. */
  cwd: string;
  /** `$HOME`; undefined or "": not searched. */
  home: string | undefined;
  /** Directory that counts as the file system's root; "/" but in tests. */
  fsRoot?: string;
  clock: Clock;
  log: Logger;
}

/** The node's own credentials: those of the first file in the places where Docker and kubelet keep them. */
export interface NodeDockerConfig {
  /** Never rejects: a file that cannot be used is logged and the next one tried. Without any, the keyring is empty. */
  keyring(): Promise<Keyring>;
}

/** Reads the node's docker configuration, at most every five minutes. */
export function createNodeDockerConfig(options: NodeDockerConfigOptions): NodeDockerConfig {
  const { clock, log } = options;
  const places = searchOrder(options);
  let held: { keyring: Promise<Keyring>; atMs: number } | undefined;
  return {
    keyring: async () => {
      const nowMs = clock.monotonic();
      if (held === undefined || nowMs - held.atMs >= cacheMs) held = { keyring: readFirst(places, log), atMs: nowMs };
      return await held.keyring;
    },
  };
}

interface Place {
  path: string;
  shape: DockerConfigShape;
}

/** All files of the newer kind come before any of the older. */
function searchOrder({ rootDir, cwd, home = "", fsRoot = "/" }: NodeDockerConfigOptions): Place[] {
  const inHome = (...names: string[]) => (home === "" ? [] : [join(home, ...names)]);
  const jsons = [
    join(rootDir, "config.json"),
    join(cwd, "config.json"),
    ...inHome(".docker", "config.json"),
    join(fsRoot, ".docker", "config.json"),
  ];
  const olds = [
    join(rootDir, ".dockercfg"),
    join(cwd, ".dockercfg"),
    ...inHome(".dockercfg"),
    join(fsRoot, ".dockercfg"),
  ];
  return [
    ...jsons.map((path) => ({ path, shape: "config.json" as const })),
    ...olds.map((path) => ({ path, shape: "dockercfg" as const })),
  ];
}

async function readFirst(places: readonly Place[], log: Logger): Promise<Keyring> {
  for (const { path, shape } of places) {
    try {
      return keyringFromDockerConfig(await readFile(path, "utf8"), shape);
    } catch (err) {
      if (["ENOENT", "ENOTDIR"].includes(errnoOf(err) ?? "")) continue;
      log.warn({ path, err: messageOf(err) }, "registry credentials of the node cannot be read, looking further");
    }
  }
  return { entries: [] };
}
