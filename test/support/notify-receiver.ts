import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

/** What sd_notify(3) brought, and the process that it counts for. */
export interface Notice {
  pid: number;
  text: string;
}

/** A supervisor's ear. */
export interface NotifyReceiver extends AsyncDisposable {
  readonly notices: readonly Notice[];
  /** Resolves with the first notice of this text, also if it came before. */
  heard(text: string): Promise<Notice>;
}

// Node.js has no datagram sockets of the unix kind, nor the credentials that systemd looks at.
const script = `
import os, socket, struct, sys
address = sys.argv[1]
ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
ear.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
ear.bind("\\0" + address[1:] if address.startswith("@") else address)
print("listening", flush=True)
while True:
    data, controls, _, _ = ear.recvmsg(4096, 256)
    pid = 0
    for level, kind, content in controls:
        if kind == socket.SCM_CREDENTIALS:
            pid = struct.unpack("3i", content[:12])[0]
        if kind == socket.SCM_RIGHTS:
            for (fd,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
                os.close(fd)
    for line in data.decode().split("\\n"):
        print(pid, line, flush=True)
`;

/** Listens at `NOTIFY_SOCKET`'s value: a path, or `@name` in the abstract name space. Needs python3. */
export async function startNotifyReceiver(address: string): Promise<NotifyReceiver> {
  const child = spawn("python3", ["-c", script, address], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(child, "exit");
  const notices: Notice[] = [];
  const listeners = new Set<() => void>();
  const lines = createInterface({ input: child.stdout });
  const [first] = (await Promise.race([once(lines, "line"), ended])) as unknown[];
  if (first !== "listening") throw new Error(`the receiver at ${address} does not listen`);
  lines.on("line", (line) => {
    const [pid = "", ...words] = line.split(" ");
    notices.push({ pid: Number(pid), text: words.join(" ") });
    for (const listener of listeners) listener();
  });
  return {
    notices,
    heard: async (text) => {
      const { promise, resolve } = Promise.withResolvers<Notice>();
      const look = () => {
        const found = notices.find((notice) => notice.text === text);
        if (found !== undefined) resolve(found);
      };
      listeners.add(look);
      look();
      return await promise.finally(() => listeners.delete(look));
    },
    [Symbol.asyncDispose]: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
}
