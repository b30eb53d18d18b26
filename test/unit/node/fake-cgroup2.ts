import { basename, dirname } from "node:path";
import { AgentError } from "../../../agent/lib/errors.ts";
import type { CgroupFS } from "../../../agent/node/cgroup-fs.ts";

const filesOf: Readonly<Record<string, readonly string[]>> = {
  cpu: ["cpu.weight", "cpu.max"],
  cpuset: ["cpuset.cpus", "cpuset.cpus.effective"],
  memory: ["memory.max"],
  pids: ["pids.max"],
  hugetlb: ["hugetlb.2MB.max"],
};

/**
 * The cgroup v2 filesystem as far as limits go: a directory has the files of the controllers that its parent passes
 * on, passing on fails while the cgroup (not the root) has processes, and a busy or inhabited directory stays.
 */
export class FakeCgroup2 implements CgroupFS {
  readonly #files = new Map<string, string>();
  readonly #directories = new Set<string>();
  readonly #root: string;

  constructor(root: string, controllers = "cpuset cpu io memory hugetlb pids") {
    this.#root = root;
    this.#directories.add(root);
    this.#files.set(`${root}/cgroup.controllers`, controllers);
    this.#files.set(`${root}/cgroup.subtree_control`, "");
    this.#files.set(`${root}/cgroup.procs`, "1\n2\n");
    this.#files.set(`${root}/cpuset.cpus.effective`, "0-3\n");
  }

  /** Puts processes into a cgroup. */
  enter(directory: string, ...pids: number[]): void {
    this.#files.set(`${directory}/cgroup.procs`, pids.map((pid) => `${pid}\n`).join(""));
  }

  /** Ends a process wherever it is. */
  readonly kill = (pid: number): void => {
    for (const [path, text] of this.#files) {
      if (path.endsWith("/cgroup.procs")) this.#files.set(path, text.replace(new RegExp(`^${pid}\n`, "m"), ""));
    }
  };

  file(path: string): string | undefined {
    return this.#files.get(path);
  }

  mkdir = async (path: string): Promise<void> => {
    if (this.#directories.has(path)) throw new AgentError("AlreadyExists", `${path} is there`);
    if (!this.#directories.has(dirname(path))) throw new AgentError("NotFound", `${dirname(path)} is not there`);
    this.#directories.add(path);
    this.#files.set(`${path}/cgroup.procs`, "");
    this.#files.set(`${path}/cgroup.subtree_control`, "");
    this.#offer(path);
  };

  write = async (path: string, content: string): Promise<void> => {
    if (!this.#files.has(path)) throw new AgentError("NotFound", `${path} is not there`);
    if (basename(path) !== "cgroup.subtree_control") {
      this.#files.set(path, content);
      return;
    }
    const directory = dirname(path);
    if (directory !== this.#root && this.#files.get(`${directory}/cgroup.procs`) !== "") {
      throw new AgentError("Unavailable", `${directory} has processes`);
    }
    const offered = (this.#files.get(`${directory}/cgroup.controllers`) ?? "").split(" ");
    const asked = content.split(" ").map((word) => word.slice(1));
    const lost = asked.find((name) => !offered.includes(name));
    if (lost !== undefined) throw new AgentError("NotFound", `${directory} has no ${lost}`);
    this.#files.set(path, [...new Set([...(this.#files.get(path) ?? "").split(" "), ...asked])].join(" ").trim());
    for (const child of this.#directories) if (dirname(child) === directory) this.#offer(child);
  };

  read = async (path: string): Promise<string> => {
    const text = this.#files.get(path);
    if (text === undefined) throw new AgentError("NotFound", `${path} is not there`);
    return text;
  };

  directories = async (path: string): Promise<string[]> => {
    if (!this.#directories.has(path)) throw new AgentError("NotFound", `${path} is not there`);
    return [...this.#directories]
      .filter((child) => child !== path && dirname(child) === path)
      .map((child) => basename(child));
  };

  rmdir = async (path: string): Promise<void> => {
    if (!this.#directories.has(path)) throw new AgentError("NotFound", `${path} is not there`);
    const isBusy = this.#files.get(`${path}/cgroup.procs`) !== "" || (await this.directories(path)).length > 0;
    if (isBusy) throw new AgentError("Unavailable", `${path} is busy`);
    this.#directories.delete(path);
    for (const file of this.#files.keys()) if (dirname(file) === path) this.#files.delete(file);
  };

  exists = async (path: string): Promise<boolean> => this.#directories.has(path);

  #offer(directory: string): void {
    const offered = this.#files.get(`${dirname(directory)}/cgroup.subtree_control`) ?? "";
    this.#files.set(`${directory}/cgroup.controllers`, offered);
    for (const controller of offered.split(" ")) {
      for (const file of filesOf[controller] ?? []) {
        if (!this.#files.has(`${directory}/${file}`)) this.#files.set(`${directory}/${file}`, "");
      }
    }
  }
}
