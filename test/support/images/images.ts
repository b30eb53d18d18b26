import { readFile } from "node:fs/promises";
import { exec } from "../../../agent/lib/exec.ts";
import { buildImage, type Image, type ImageSpec } from "./oci.ts";
import { pauseProgram } from "./pause-elf.ts";
import type { TarEntry } from "./tar.ts";

// A registry name that resolves nowhere: test nodes have these images loaded, and a test that pulls them points its
// containerd at a registry of its own under this name.
export const pauseImageName = "registry.local/pause:3";
export const busyboxImageName = "registry.local/busybox:1";
export const webImageName = "registry.local/web:1";
export const webPort = 8080;

/** The images that every test node has. Needs Debian's busybox-static. */
export async function standardImages(): Promise<Image[]> {
  const busybox = await busyboxLayer();
  return [pauseImage(), busyboxImage(busybox), webImage(busybox)];
}

/** A busybox image under another name or with another config, for tests that need one of their own. */
export async function customImage(spec: Omit<ImageSpec, "layers"> & { files?: readonly TarEntry[] }): Promise<Image> {
  const { files = [], ...rest } = spec;
  const layers = [await busyboxLayer(), ...(files.length === 0 ? [] : [files])];
  return buildImage({ cmd: ["sh"], ...rest, layers });
}

function pauseImage(): Image {
  const layer: TarEntry[] = [{ kind: "file", path: "pause", content: pauseProgram(), mode: 0o755 }];
  return buildImage({ name: pauseImageName, layers: [layer], entrypoint: ["/pause"], user: "65535:65535" });
}

function busyboxImage(busybox: readonly TarEntry[]): Image {
  return buildImage({ name: busyboxImageName, layers: [busybox], cmd: ["sh"] });
}

/**
 * Answers HTTP on port 8080 (or `PORT`): `/` with the pod's hostname, `/cgi-bin/client` with the client's address,
 * `/cgi-bin/env` with the environment, `/healthz` with "ok". Exits at once on SIGTERM.
 */
function webImage(busybox: readonly TarEntry[]): Image {
  const script = (path: string, lines: string): TarEntry => ({
    kind: "file",
    path,
    content: `#!/bin/sh\n${lines}\n`,
    mode: 0o755,
  });
  const cgi = (name: string, command: string) =>
    script(`site/cgi-bin/${name}`, `printf 'Content-Type: text/plain\\r\\n\\r\\n'\n${command}`);
  const layer: TarEntry[] = [
    { kind: "dir", path: "site" },
    { kind: "dir", path: "site/cgi-bin" },
    { kind: "file", path: "site/healthz", content: "ok\n" },
    cgi("index.cgi", "hostname"),
    cgi("hostname", "hostname"),
    cgi("client", 'echo "$REMOTE_ADDR"'),
    cgi("env", "env"),
    // PID 1 has no default signal actions, so the shell stays in front of httpd to end on SIGTERM.
    script("web", `trap 'exit 0' TERM INT\nhttpd -f -p "\${PORT:-${webPort}}" -h /site &\nwait`),
  ];
  return buildImage({ name: webImageName, layers: [busybox, layer], cmd: ["/web"] });
}

async function busyboxLayer(): Promise<TarEntry[]> {
  const program = await readFile("/bin/busybox").catch((err: unknown) => {
    throw new Error("test images are made from /bin/busybox: apt-get install busybox-static", { cause: err });
  });
  if (needsInterpreter(program)) {
    throw new Error("/bin/busybox is not static: apt-get install busybox-static (it replaces busybox)");
  }
  const list = await exec("/bin/busybox", ["--list"], { timeoutMs: 10_000 });
  if (list.failure !== undefined) throw new Error(list.message);
  const applets = list.stdout.split("\n").filter((name) => name !== "" && name !== "busybox");
  return [
    { kind: "dir", path: "bin" },
    { kind: "file", path: "bin/busybox", content: program, mode: 0o755 },
    ...applets.map((name): TarEntry => ({ kind: "symlink", path: `bin/${name}`, target: "busybox" })),
    { kind: "dir", path: "etc" },
    {
      kind: "file",
      path: "etc/passwd",
      content:
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    },
    { kind: "file", path: "etc/group", content: "root:x:0:\nuser:x:1000:\nnobody:x:65534:\n" },
    { kind: "dir", path: "root", mode: 0o700 },
    { kind: "dir", path: "home" },
    { kind: "dir", path: "home/user" },
    { kind: "dir", path: "tmp", mode: 0o1777 },
    { kind: "dir", path: "var" },
    { kind: "dir", path: "www" },
    { kind: "file", path: "www/index.html", content: "busybox\n" },
  ];
}

/** True for a dynamic ELF program: one of its program headers (64 bit layout) names an interpreter. */
function needsInterpreter(program: Buffer): boolean {
  const headersAt = Number(program.readBigUInt64LE(32));
  const headerBytes = program.readUInt16LE(54);
  const count = program.readUInt16LE(56);
  for (let i = 0; i < count; i++) if (program.readUInt32LE(headersAt + i * headerBytes) === 3) return true;
  return false;
}
