/**
 * Tokens that pay for retries: as long as work succeeds there are plenty, and when nothing does they run out, so that
 * retries never multiply the load of a server that is in trouble by more than a constant
 * (gRPC A6, "Throttling Retry Attempts and Hedged RPCs"; the AWS SDKs and MongoDB's drivers do the same).
 */
export class RetryBudget {
  readonly capacity: number
  /** Tokens that a success brings back. */
  readonly refill: number
  private left: number
  /** Failures that have been paid for: what fails together costs once. */
  private readonly paid = new Set<number>()

  constructor(capacity: number, refill: number) {
    this.capacity = capacity
    this.refill = refill
    this.left = capacity
  }

  get tokens(): number {
    return this.left
  }

  /** Takes `cost` tokens, or none and answers false. `source` names an event that many callers may have met at once. */
  withdraw(cost: number, source?: number): boolean {
    if (source !== undefined && this.paid.has(source)) return true
    if (this.left < cost) return false
    this.left -= cost
    if (source !== undefined) this.remember(source)
    return true
  }

  /** Called for every success, so it does nothing while the budget is full. */
  succeeded(): void {
    if (this.left < this.capacity) this.deposit(this.refill)
  }

  deposit(tokens: number): void {
    this.left = Math.min(this.capacity, this.left + tokens)
  }

  private remember(source: number): void {
    this.paid.add(source)
    if (this.paid.size <= mostRemembered) return
    for (const oldest of this.paid) {
      this.paid.delete(oldest)
      return
    }
  }
}

const mostRemembered = 64
