/** One request as it was answered. `code` is 0 while it is under way, or when it was cut. */
export interface LoggedRequest {
  readonly atMs: number;
  readonly method: string;
  /** Path with query. */
  readonly url: string;
  /** The API verb: get, list, watch, create, … */
  readonly verb: string;
  /** `pods`, `pods/status`, …; "" outside of resources. */
  readonly resource: string;
  readonly user: string;
  readonly userAgent: string;
  readonly httpVersion: string;
  code: number;
}

export interface RequestFilter {
  method?: string;
  verb?: string;
  resource?: string;
  user?: string;
  path?: RegExp;
}

// Old requests are forgotten, so that a long run does not grow.
const requestsMax = 50_000;

/** What was asked of the server. Tests count here. */
export class RequestLog {
  #requests: LoggedRequest[] = [];

  add(request: LoggedRequest): void {
    this.#requests.push(request);
    if (this.#requests.length > 2 * requestsMax) this.#requests.splice(0, requestsMax);
  }

  /** Matching requests, oldest first. */
  filter(filter: RequestFilter = {}): LoggedRequest[] {
    return this.#requests.filter(
      (r) =>
        (filter.method === undefined || r.method === filter.method) &&
        (filter.verb === undefined || r.verb === filter.verb) &&
        (filter.resource === undefined || r.resource === filter.resource) &&
        (filter.user === undefined || r.user === filter.user) &&
        (filter.path === undefined || filter.path.test(r.url)),
    );
  }

  count(filter: RequestFilter = {}): number {
    return this.filter(filter).length;
  }

  clear(): void {
    this.#requests = [];
  }
}
