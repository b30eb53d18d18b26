import { readdir, readFile, readlink, stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

const killRounds = 100;
const killRestMs = 20;
const freezeRestMs = 5;

/**
 * Kills every process that runs in one of the network namespaces (paths that are not there are skipped), and all descendants of those (a pod's processes have a
 * namespace of their own, but their parent, the shim, runs in the node's). Each is killed by its own PID; repeated until
 * none is left, since a dying shim may leave a child to be found.
 *
 * @throws with the names of what would not die
 */
export async function killAllIn(netnsPaths: readonly string[]): Promise<void> {
  const stats = await Promise.all(netnsPaths.map(async (path) => await stat(path).catch(() => undefined)));
  const networks = new Set(stats.filter((s) => s !== undefined).map(({ ino }) => `net:[${ino}]`));
  let left: Process[] = [];
  const known = new Set<number>();
  for (let round = 0; round < killRounds; round++) {
    const all = await listProcesses();
    left = processesOf(all, networks, known).filter(({ state }) => state !== "Z");
    if (left.length === 0) return;
    for (const { pid } of left) {
      known.add(pid);
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It ended in the meantime.
      }
    }
    await sleep(killRestMs);
  }
  throw new Error(
    `processes of ${netnsPaths[0]} do not end: ${left.map(({ pid, name }) => `${pid} (${name})`).join(", ")}`,
  );
}

/** Makes a process hang until it gets SIGCONT. The signal alone does not: its threads go on until each has noticed. */
export async function freeze(pid: number): Promise<void> {
  process.kill(pid, "SIGSTOP");
  for (;;) {
    const tasks = await readdir(`/proc/${pid}/task`);
    const texts = await Promise.all(tasks.map(async (task) => await statOf(`/proc/${pid}/task/${task}/stat`)));
    if (texts.every((text) => text === "" || /\) [tT] /.test(text))) return;
    await sleep(freezeRestMs);
  }
}

async function statOf(path: string): Promise<string> {
  return await readFile(path, "utf8").catch(() => ""); // a thread that has ended
}

interface Process {
  pid: number;
  parent: number;
  name: string;
  state: string;
  network: string;
}

function processesOf(all: readonly Process[], networks: ReadonlySet<string>, known: ReadonlySet<number>): Process[] {
  const found = new Set(all.filter((p) => networks.has(p.network) || known.has(p.pid)).map(({ pid }) => pid));
  for (let grown = true; grown; ) {
    grown = false;
    for (const { pid, parent } of all) {
      if (found.has(parent) && !found.has(pid)) {
        found.add(pid);
        grown = true;
      }
    }
  }
  found.delete(process.pid);
  return all.filter(({ pid }) => found.has(pid));
}

async function listProcesses(): Promise<Process[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const processes = await Promise.all(
    pids.map(async (pid): Promise<Process | undefined> => {
      const [line, network] = await Promise.all([
        readFile(`/proc/${pid}/stat`, "utf8").catch(() => ""),
        readlink(`/proc/${pid}/ns/net`).catch(() => ""),
      ]);
      const nameEnd = line.lastIndexOf(")");
      if (nameEnd < 0) return undefined;
      const [state = "", parent = "0"] = line.slice(nameEnd + 2).split(" ");
      return {
        pid: Number(pid),
        parent: Number(parent),
        name: line.slice(line.indexOf("(") + 1, nameEnd),
        state,
        network,
      };
    }),
  );
  return processes.filter((p) => p !== undefined);
}
