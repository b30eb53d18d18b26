import type { IncomingHttpHeaders, ServerResponse } from "node:http";
import { readdir } from "node:fs/promises";
import { join, posix } from "node:path";
import { errnoOf } from "../../lib/errno.ts";
import { type Exchange, HttpError } from "../port.ts";
import { plainError } from "../respond.ts";
import { createBodyWriter } from "./body.ts";
import { type OpenFile, openFile, readFile, statPath } from "./files.ts";
import { checkConditions, isRangeCurrent, parseRange } from "./range.ts";

// As much as is looked at to tell text from the rest.
const sniffBytes = 512;

/**
 * Serves what is at `path` below `rootDir`, like a web server: files with ranges and conditions, directories as a page of
 * links. Links are followed wherever they lead; `..` is not.
 *
 * @param path decoded, without the leading slash; a directory's ends in one
 * Rejects with HttpError where there is nothing to serve.
 */
export async function serveFile(rootDir: string, path: string, exchange: Exchange): Promise<void> {
  const { response } = exchange;
  if (path.includes("\0")) throw plainError(400, "invalid path");
  if (path === "index.html" || path.endsWith("/index.html")) return redirect(exchange, "./");
  const clean = posix.resolve("/", `./${path}`);
  const full = join(rootDir, clean);
  const stats = await statPath(full);
  const endsInSlash = path === "" || path.endsWith("/");
  if (stats.isDirectory()) {
    if (!endsInSlash) return redirect(exchange, `${encodeURIComponent(posix.basename(clean))}/`);
    const index = await openFile(join(full, "index.html")).catch(() => undefined);
    if (index === undefined) return await serveDirectory(full, Number(stats.mtimeMs), exchange);
    await using file = index;
    return await sendFile(file, "index.html", exchange);
  }
  if (endsInSlash) return redirect(exchange, `../${encodeURIComponent(posix.basename(clean))}`);
  await using file = await openFile(full);
  return await sendFile(file, posix.basename(clean), exchange);

  function redirect({ query }: Exchange, location: string): void {
    const rest = query.size === 0 ? "" : `?${query.toString()}`;
    response.writeHead(301, { Location: `${location}${rest}` });
    response.end();
  }
}

async function sendFile(file: OpenFile, name: string, { request, response, signal }: Exchange): Promise<void> {
  const { handle, size, modifiedAtMs } = file;
  response.setHeader("Last-Modified", new Date(modifiedAtMs).toUTCString());
  if (isAnswered(request.headers, modifiedAtMs, response)) return;
  const { range: wanted, "if-range": ifRange } = request.headers;
  const range = isRangeCurrent(single(ifRange), modifiedAtMs) ? parseRange(wanted, size) : undefined;
  if (range === "unsatisfiable") {
    throw new HttpError(416, "invalid range: failed to overlap", { "Content-Range": `bytes */${size}` });
  }
  const { start, length } = range ?? { start: 0, length: size };
  response.writeHead(range === undefined ? 200 : 206, {
    "Accept-Ranges": "bytes",
    "Content-Length": length,
    "Content-Type": await contentType(file, name),
    "X-Content-Type-Options": "nosniff",
    ...(range === undefined ? {} : { "Content-Range": `bytes ${start}-${start + length - 1}/${size}` }),
  });
  if (request.method !== "HEAD") {
    const sent = await readFile(handle, start, length, createBodyWriter(response, signal), signal);
    // Truncated meanwhile: what was promised cannot be sent, and the client must see that.
    if (sent < length) response.destroy();
  }
  response.end();
}

async function serveDirectory(dir: string, modifiedAtMs: number, { request, response }: Exchange): Promise<void> {
  response.setHeader("Last-Modified", new Date(modifiedAtMs).toUTCString());
  if (isAnswered(request.headers, modifiedAtMs, response)) return;
  const entries = await readdir(dir, { withFileTypes: true }).catch((err: unknown) => {
    throw plainError(errnoOf(err) === "EACCES" ? 403 : 500, "Error reading directory");
  });
  const names = entries.map((entry) => `${entry.name}${entry.isDirectory() ? "/" : ""}`).sort();
  response.writeHead(200, { "Content-Type": "text/html; charset=utf-8", "X-Content-Type-Options": "nosniff" });
  response.end(listing(names));
}

function listing(names: readonly string[]): string {
  const links = names.map((name) => `<a href="${linkTo(name)}">${escape(name)}</a>\n`).join("");
  return `<!doctype html>\n<meta name="viewport" content="width=device-width">\n<pre>\n${links}</pre>\n`;
}

function linkTo(name: string): string {
  const isDirectory = name.endsWith("/");
  return `${encodeURIComponent(isDirectory ? name.slice(0, -1) : name)}${isDirectory ? "/" : ""}`;
}

function escape(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&#34;")
    .replaceAll("'", "&#39;");
}

function isAnswered(headers: IncomingHttpHeaders, modifiedAtMs: number, response: ServerResponse): boolean {
  const status = checkConditions(
    {
      ifMatch: headers["if-match"],
      ifUnmodifiedSince: headers["if-unmodified-since"],
      ifNoneMatch: headers["if-none-match"],
      ifModifiedSince: headers["if-modified-since"],
    },
    modifiedAtMs,
  );
  if (status === undefined) return false;
  response.writeHead(status);
  response.end();
  return true;
}

/** Never text/html: what a program logged must not run in the browser of who reads it. */
async function contentType({ handle, size }: OpenFile, name: string): Promise<string> {
  if (name.endsWith(".gz")) return "application/gzip";
  const head = Buffer.alloc(Math.min(sniffBytes, size));
  const { bytesRead } = await handle.read(head, 0, head.length, 0);
  return head.subarray(0, bytesRead).includes(0) ? "application/octet-stream" : "text/plain; charset=utf-8";
}

function single(header: string | string[] | undefined): string | undefined {
  return Array.isArray(header) ? header[0] : header;
}
