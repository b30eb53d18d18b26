import * as nodeFS from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { type WriteOptions, type WriterFS, writePayload } from "../../../agent/volumes/atomic-writer.ts";
import { openDir } from "../../../agent/volumes/safe-path.ts";
import type { Payload } from "../../../agent/volumes/payload.ts";
import { removeTree } from "../../../agent/volumes/remove-tree.ts";

export const nowMs = Date.UTC(2026, 0, 31, 23, 59, 59);

export function payloadOf(files: Record<string, string>, mode = 0o644): Payload {
  return new Map(Object.entries(files).map(([path, text]) => [path, { data: Buffer.from(text), mode }]));
}

/** Writes to the volume at `at` as set-up does. */
export async function write(at: string, payload: Payload, options: Partial<WriteOptions> = {}): Promise<boolean> {
  const dir = await openDir(at);
  try {
    return await writePayload(dir, payload, { nowMs, ...options });
  } finally {
    await dir.close();
  }
}

/** What a container sees: path → text, without the names that start with "..". */
export async function visible(at: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  const walk = async (path: string, prefix: string) => {
    for (const name of await readdir(path)) {
      if (prefix === "" && name.startsWith("..")) continue;
      const full = join(path, name);
      const key = prefix + name;
      const kind = await stat(full).catch(() => undefined);
      if (kind === undefined) found[key] = "(dangling)";
      else if (kind.isDirectory()) await walk(full, `${key}/`);
      else found[key] = await readFile(full, "utf8");
    }
  };
  await walk(at, "");
  return found;
}

export async function hiddenNames(at: string): Promise<string[]> {
  return (await readdir(at)).filter((name) => name.startsWith("..")).sort();
}

const handleSteps = new Set(["writeFile", "chown", "chmod"]);

/** What a writer left when it died. */
export class Estate {
  readonly #opened: FileHandle[] = [];
  readonly #underWay = new Set<Promise<unknown>>();

  async track<T>(step: Promise<T>): Promise<T> {
    this.#underWay.add(step);
    try {
      return await step;
    } finally {
      this.#underWay.delete(step);
    }
  }

  opened(handle: FileHandle): FileHandle {
    this.#opened.push(handle);
    return handle;
  }

  /** Ends what is under way and closes all files, as the kernel does. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#underWay);
    await Promise.all(this.#opened.map((handle) => handle.close()));
  }
}

/** The real thing, with `beforeStep` called before each change or look at the disk. What it throws, the step throws. */
export function steppedFS(beforeStep: (step: string) => Promise<void>, estate = new Estate()): WriterFS {
  const watch = <T extends object>(target: T, isStep: (name: string) => boolean): T =>
    new Proxy(target, {
      get(_, property) {
        const value: unknown = Reflect.get(target, property, target);
        if (typeof value !== "function") return value;
        const call = value.bind(target) as (...args: unknown[]) => unknown;
        const name = String(property);
        if (!isStep(name)) return call;
        return async (...args: unknown[]) => {
          await beforeStep(name);
          const result = await estate.track(Promise.resolve(call(...args)));
          if (name !== "open") return result;
          return watch(estate.opened(result as FileHandle), (step) => handleSteps.has(step));
        };
      },
    });
  return watch<WriterFS>({ ...nodeFS, removeTree }, () => true);
}
