import { hash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { watchFiles } from "../lib/watch-file.ts";
import type { Surroundings } from "./cluster.ts";

interface ProxyConfigFile {
  /** "": there is none. */
  readonly file: string;
  /** The process is the proxy's alone. */
  readonly isAlone: boolean;
}

/**
 * Watches the proxy's configuration file for other content. kube-proxy then ends, for its supervisor to start it with what is new, and
 * who mounts a ConfigMap relies on that. Beside the kubelet role it is only told: nobody would expect that an edit of
 * this file, or a mistake in it, takes the kubelet along.
 */
export function watchProxyConfig({ file, isAlone }: ProxyConfigFile, surroundings: Surroundings): void {
  if (file === "") return;
  const { clock, log, parts } = surroundings;
  const path = resolve(file);
  parts.start("kube-proxy's configuration file", async (signal) => {
    const changed = new AbortController();
    let seen: string | undefined;
    const onChange = async () => {
      const text = await readFile(path, "utf8").catch(() => undefined);
      if (text === undefined) return; // it is being replaced, or gone: nothing to start with
      const digest = hash("sha256", text);
      const isNew = seen !== undefined && seen !== digest;
      seen = digest;
      if (!isNew) return;
      if (isAlone) changed.abort();
      else log.warn({ file }, "the proxy's configuration file has changed; it counts from the next start of the agent");
    };
    await watchFiles({ files: [path], onChange, clock, log }, AbortSignal.any([signal, changed.signal]));
    if (changed.signal.aborted && !signal.aborted) {
      throw new Error(
        `${file} has changed, and counts from the next start: ending for the supervisor to start the proxy again`,
      );
    }
  });
}
