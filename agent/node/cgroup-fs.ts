import { constants, mkdir, open, readdir, readFile, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { AgentError, messageOf } from "../lib/errors.ts";
import { isThere } from "../lib/is-there.ts";

/** The file operations that cgroups need. Failures are `AgentError`s: NotFound, AlreadyExists, Forbidden, Unavailable (busy), Internal. */
export interface CgroupFS {
  /** Makes one directory. */
  mkdir(path: string): Promise<void>;
  /** Writes a file that the kernel made; never creates one. */
  write(path: string, content: string): Promise<void>;
  read(path: string): Promise<string>;
  /** Names of sub-directories. */
  directories(path: string): Promise<string[]>;
  rmdir(path: string): Promise<void>;
  exists(path: string): Promise<boolean>;
}

/** The kernel's. */
export const kernelCgroupFS: CgroupFS = {
  mkdir: (path) => translated("create cgroup", path, () => mkdir(path, { mode: 0o755 })),
  write: (path, content) =>
    translated("write", path, async () => {
      const file = await open(path, constants.O_WRONLY | constants.O_TRUNC);
      try {
        await file.write(content);
      } finally {
        await file.close();
      }
    }),
  read: (path) => translated("read", path, () => readFile(path, "utf8")),
  directories: (path) =>
    translated("list", path, async () => {
      const entries = await readdir(path, { withFileTypes: true });
      return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
    }),
  rmdir: (path) => translated("remove cgroup", path, () => rmdir(path)),
  exists: isThere,
};

/** Processes in `directory` and all cgroups below it. One that vanishes meanwhile has none. */
export async function pidsBelow(fs: CgroupFS, directory: string): Promise<number[]> {
  if (!(await fs.exists(directory))) return [];
  const [own, names] = await Promise.all([
    fs.read(join(directory, "cgroup.procs")).catch(() => ""),
    fs.directories(directory).catch(() => []),
  ]);
  const below = await Promise.all(names.map((name) => pidsBelow(fs, join(directory, name))));
  // The kernel shows 0 for a process outside our PID namespace; there is nothing we could do to it.
  const pids = own.split("\n").flatMap((line) => (Number(line) > 0 ? [Number(line)] : []));
  return [...pids, ...below.flat()];
}

/** Removes `directory` and all cgroups below it, deepest first. */
export async function removeBelow(fs: CgroupFS, directory: string): Promise<void> {
  if (!(await fs.exists(directory))) return;
  const names = await fs.directories(directory).catch(() => []);
  for (const name of names) await removeBelow(fs, join(directory, name));
  await fs.rmdir(directory).catch((err: unknown) => {
    if (!(err instanceof AgentError) || err.code !== "NotFound") throw err;
  });
}

const codes: Partial<
  Record<string, { code: "NotFound" | "AlreadyExists" | "Forbidden" | "Unavailable"; advice: string }>
> = {
  ENOENT: { code: "NotFound", advice: "" },
  ENODEV: { code: "NotFound", advice: "" },
  EEXIST: { code: "AlreadyExists", advice: "" },
  EBUSY: { code: "Unavailable", advice: "" },
  EROFS: {
    code: "Forbidden",
    advice: "; the cgroup filesystem is read-only here: run the agent's container privileged",
  },
  EACCES: { code: "Forbidden", advice: "; the agent needs root and a writable cgroup filesystem" },
  EPERM: { code: "Forbidden", advice: "; the agent needs root and a writable cgroup filesystem" },
};

async function translated<T>(verb: string, path: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (err) {
    const name = err instanceof Error && "code" in err ? String(err.code) : "";
    const known = codes[name];
    throw new AgentError(known?.code ?? "Internal", `cannot ${verb} ${path}: ${messageOf(err)}${known?.advice ?? ""}`, {
      cause: err,
    });
  }
}
